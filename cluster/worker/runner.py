"""The loop of a worker process: takes claimed rows from the coordinator, performs them, reports how they ended.

Owns the slots and the rows that wait for one. Talks to the coordinator only, never to Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
import os
import signal
import time
from array import array
from collections import OrderedDict
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import count, repeat
from typing import Any, NamedTuple

import structlog
from psycopg import pq
from psycopg.abc import Transformer as Decoder
from psycopg.adapt import Transformer

from cluster.frames import (
    ATTEMPTS,
    COLUMNS,
    CREATED_AT,
    ID,
    PRIORITY,
    QUEUE,
    RUN_AT,
    SCHEDULED_FOR,
    ZONE,
    FrameProtocol,
    RawRow,
    integer,
    worker_end,
)
from cluster.job import Row
from cluster.lease_clock import boottime
from cluster.notes import Notes
from cluster.spawn import STOP_SIGNAL
from cluster.worker.job_metrics import Reporter
from cluster.worker.perform import CANCELLED, SUCCEEDED, Attempt, Performer, Verdict, refuse_row

log = structlog.get_logger("cluster.worker")

BEAT_INTERVAL = 1.0
GATHER = 0.002
"""Seconds for which reports may be gathered while other jobs wait for a slot."""
LARGEST_FRAME = 100
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""From which Postgres counts the microseconds of a timestamptz."""


class Batch(NamedTuple):
    """What the rows of one frame have in common. fence: see frames."""

    performer: Performer
    fence: float
    columns: Columns


class Runner:
    """Performs what the coordinator sends, up to `slots` at a time.

    All of it runs on the worker's loop, in the main thread; a plain job that has the process to itself takes that from the loop.
    """

    def __init__(self, performers: Sequence[Performer], notes: Notes, slots: int) -> None:
        self._performers = performers
        self._notes = notes
        self._loop = asyncio.get_running_loop()
        self._context = _context_of_imports()
        """In which every attempt begins: nothing that another has set."""
        self._channel = worker_end(self._receive, self._lost_coordinator)
        self._waiting: OrderedDict[int, tuple[Batch, RawRow]] = OrderedDict()
        """Claimed rows that have not begun, by ticket, first come first."""
        self._free = list(range(slots))
        self._attempts: dict[int, Attempt | str | None] = {}
        """Of every slot that is taken, by ticket. None: its first step is yet to come; a text: why it is to stop at that."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """By slot, so that none is collected while it runs."""
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="job")
        """Of plain jobs with neighbours. Threads are used again, so what a job keeps in a thread-local is there for later ones."""
        self._for_main: tuple[int, Batch, RawRow] | None = None
        """The ticket and row of a job that waits for the main thread: it has the process to itself."""
        self._in_main: tuple[int, Attempt] | None = None
        """The ticket and attempt that the main thread performs."""
        signal.signal(STOP_SIGNAL, self._stop_in_main)
        self._reports: list[tuple[Any, ...]] = []
        self._successes: list[float] = []
        """Of each ticket, begun and ended, as they go into a frame."""
        self._metrics = Reporter()
        self._exemplars: dict[tuple[str, str, str], tuple[str, float]] = {}
        """The last attempt of a trace, by job type, queue and outcome: trace id, seconds."""
        self._is_alone = False
        """The coordinator is gone."""
        self._awake = asyncio.Event()

    @property
    def channel(self) -> FrameProtocol:
        return self._channel

    async def run(self) -> bool:
        """Until a job waits for the main thread: True; or until the coordinator is gone."""
        self._awake.clear()
        while self._for_main is None and not self._is_alone:
            self._notes.beat()
            self._report_metrics()
            self._report_exemplars()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), BEAT_INTERVAL)
        return not self._is_alone

    def _lost_coordinator(self) -> None:
        self._is_alone = True
        self._awake.set()

    # --- frames ---

    def _receive(self, frame: Sequence[Any]) -> None:
        match frame:
            case ("perform", job_type, fence, oids, ticket, rows):
                performer = self._performers[job_type]
                batch = Batch(performer, fence, Columns(oids, len(performer.definition.columns)))
                self._waiting.update(zip(count(ticket), zip(repeat(batch), rows)))
                self._fill()
            case ("stop", tickets, reason):
                self._stop(tickets, reason)
            case ("return", tickets):
                self._return(list(self._waiting) if tickets is None else tickets)
            case _:
                raise AssertionError(f"unknown frame {frame[0]!r}")

    def _stop(self, tickets: list[int], reason: str) -> None:
        """What has not begun never will."""
        if reason == "cancelled":
            now = time.monotonic()
            for ticket in tickets:
                if self._waiting.pop(ticket, None) is not None:
                    self._report(ticket, CANCELLED._replace(attempts=-1), now)
        else:
            self._return(tickets)
        for ticket in tickets:
            attempt = self._attempts.get(ticket)
            if isinstance(attempt, Attempt):
                attempt.stop(reason)
            elif ticket in self._attempts:
                self._attempts[ticket] = attempt or reason

    def _return(self, tickets: list[int]) -> None:
        returned = [ticket for ticket in tickets if self._waiting.pop(ticket, None) is not None]
        if returned:
            self._channel.send(("returned", returned))

    def _report(self, ticket: int, verdict: Verdict, begun: float, attempt: Attempt | Verdict | None = None) -> None:
        """Reports go in one frame: those of one turn of the loop, or of a moment while more jobs wait than there are slots.

        attempt: that was made, if one was.
        """
        ended = time.monotonic()
        if isinstance(attempt, Attempt) and attempt.trace_id:
            self._note_exemplar(attempt, verdict, ended - begun)
        if verdict is SUCCEEDED:
            self._successes += (ticket, begun, ended)
        else:
            self._reports.append((ticket, *verdict.of_report(), begun, ended, verdict.said))
        gathered = len(self._successes) // 3 + len(self._reports)
        if gathered == 1:
            if self._waiting:
                self._loop.call_later(GATHER, self._flush)
            else:
                self._loop.call_soon(self._flush)
        elif gathered == LARGEST_FRAME:
            self._flush()

    def _flush(self) -> None:
        self._report_metrics()  # first: what an ended attempt has counted is not lost with its process
        if self._successes:
            successes, self._successes = self._successes, []
            self._channel.send(("succeeded", array("d", successes)))
        if self._reports:
            reports, self._reports = self._reports, []
            self._channel.send(("done", reports))

    def _report_metrics(self) -> None:
        frame = self._metrics.frame()
        if frame is not None:
            self._channel.send(frame)

    def _report_exemplars(self) -> None:
        if self._exemplars:
            exemplars, self._exemplars = self._exemplars, {}
            self._channel.send(("exemplars", [[*labels, *example] for labels, example in exemplars.items()]))

    def _note_exemplar(self, attempt: Attempt, verdict: Verdict, seconds: float) -> None:
        """seconds: of the attempt, as they are reported: by another clock it might be in a bucket that does not count it."""
        queue = attempt.queue.decode(errors="replace")
        self._exemplars[attempt.performer.definition.name, queue, verdict.outcome] = attempt.trace_id, seconds

    # --- attempts ---

    def _fill(self) -> None:
        now = boottime()
        while self._free and self._waiting:
            ticket, (batch, row) = self._waiting.popitem(last=False)
            if now >= batch.fence:  # claimed under a lease that may be over: the row may be somebody else's
                self._channel.send(("returned", [ticket]))
                continue
            if batch.performer.is_in_main:
                self._for_main = (ticket, batch, row)
                self._awake.set()
                return
            slot = self._free.pop()
            self._attempts[ticket] = None
            steps = Steps(self._perform(slot, ticket, batch, row), self._notes, slot)
            self._tasks[slot] = self._loop.create_task(steps, context=self._context.copy())

    async def _perform(self, slot: int, ticket: int, batch: Batch, row: RawRow) -> None:
        job_id = integer(row[ID])
        begun = time.monotonic()
        self._notes.begin(slot, ticket, begun)
        try:
            attempt = self._attempt(batch.performer, job_id, batch.columns, row)
            if isinstance(attempt, Attempt):
                told, self._attempts[ticket] = self._attempts[ticket], attempt
                if isinstance(told, str):
                    attempt.stop(told)
                verdict = await self._carry_out(attempt, self._tasks[slot])
            else:
                verdict = attempt
            del self._attempts[ticket]
        except BaseException:
            # Without an outcome the row would stay running for good; a crash with this attempt in progress is noticed.
            log.critical("attempt_without_outcome", job_id=job_id, exc_info=True)
            os._exit(1)
        self._notes.end(slot)
        self._free.append(slot)
        self._report(ticket, verdict, begun, attempt)
        if self._waiting:
            self._fill()

    def perform_in_main(self) -> None:
        """Performs the job that waits for it, in the current thread and while the loop stands still."""
        assert self._for_main is not None
        (ticket, batch, row), self._for_main = self._for_main, None
        begun = time.monotonic()
        self._notes.begin(0, ticket, begun)
        context = self._context.copy()
        attempt = context.run(self._attempt, batch.performer, integer(row[ID]), batch.columns, row)
        if isinstance(attempt, Attempt):
            self._in_main = (ticket, attempt)
            asked = self._notes.asked_to_stop(ticket)  # before it was there to be interrupted
            if asked is not None:
                attempt.interrupt(asked)
            verdict = context.run(attempt.perform_plain)
            self._in_main = None
        else:
            verdict = attempt
        self._notes.end(0)
        self._notes.beat()
        self._report(ticket, verdict, begun, attempt)
        self._flush()

    def _stop_in_main(self, *_: object) -> None:
        """The handler of STOP_SIGNAL. What is not there yet will look itself."""
        if self._in_main is not None:
            ticket, attempt = self._in_main
            reason = self._notes.asked_to_stop(ticket)
            if reason is not None:
                attempt.interrupt(reason)

    def _attempt(self, performer: Performer, job_id: int, columns: Columns, row: RawRow) -> Attempt | Verdict:
        """The attempt to make on a row, or the verdict on a row that does not fit its class."""
        own: tuple[Any, ...] = ()
        try:
            own = columns.own(row)
            job = performer.build(own)
        except BaseException as error:  # noqa: BLE001 - a value or a user's validator: this job's failure, nobody else's
            return refuse_row(error, performer.secrets_of(own))
        number = integer(row[ATTEMPTS])
        values = vars(job)
        values["id"], values["attempt"], values["_row"] = job_id, number, partial(columns.standard, row)
        if row[SCHEDULED_FOR] is not None:
            values["scheduled_for"] = _EPOCH + timedelta(microseconds=integer(row[SCHEDULED_FOR]))
            values["_zone"] = (row[ZONE] or b"UTC").decode()
        return Attempt(performer, job, number, row[QUEUE] or b"", columns.traceparent(row))

    def _carry_out(self, attempt: Attempt, task: asyncio.Task[None]) -> Coroutine[Any, Any, Verdict]:
        performer = attempt.performer
        performing = attempt.perform(task) if performer.definition.is_async else self._in_thread(attempt)
        return performing if performer.timeout is None else self._in_time(performer.timeout, attempt, performing)

    async def _in_time(self, timeout: float, attempt: Attempt, performing: Coroutine[Any, Any, Verdict]) -> Verdict:
        timer = self._loop.call_later(timeout, attempt.stop, "timed_out")
        try:
            return await performing
        finally:
            timer.cancel()

    async def _in_thread(self, attempt: Attempt) -> Verdict:
        """An exception that was sent to it never reaches another job: it is taken back before the thread is free."""
        return await self._loop.run_in_executor(self._threads, self._context.copy().run, attempt.perform_plain)


def _context_of_imports() -> contextvars.Context:
    """What the imports of the job modules have set. But for a decimal context, which is an object that copies would share."""
    context = contextvars.Context()
    for variable, value in contextvars.copy_context().items():
        if not isinstance(value, decimal.Context):
            context.run(variable.set, value)
    return context


class Columns:
    """How the values of one frame's rows are decoded. oids: of all columns, as the database has named them. own: how many are the
    class's; one more is `traceparent`."""

    def __init__(self, oids: Sequence[int], own: int) -> None:
        self._oids = oids
        self._end = COLUMNS + own
        self._own = _decoder(tuple(oids[COLUMNS : self._end]))

    def own(self, row: RawRow) -> tuple[Any, ...]:
        """The values of the class's columns."""
        return self._own.load_sequence(row[COLUMNS : self._end])

    def traceparent(self, row: RawRow) -> str:
        """Empty: there is none."""
        return (row[self._end] or b"").decode(errors="replace") if len(row) > self._end else ""

    def standard(self, row: RawRow) -> Row:
        """What a job may see of the others."""
        values = _decoder(tuple(self._oids)).load_sequence(row)
        return Row(values[QUEUE], values[PRIORITY], values[RUN_AT], values[ATTEMPTS], values[CREATED_AT])


@lru_cache(1000)
def _decoder(oids: tuple[int, ...]) -> Decoder:
    decoder = Transformer()
    decoder.set_loader_types(oids, pq.Format.BINARY)
    return decoder


class Steps(Coroutine[Any, Any, None]):
    """A coroutine that notes, at every step, that its attempt has the loop's thread: who blocks the loop is then known."""

    __slots__ = ("_coroutine", "_notes", "_slot")

    def __init__(self, coroutine: Coroutine[Any, Any, None], notes: Notes, slot: int) -> None:
        self._coroutine = coroutine
        self._notes = notes
        self._slot = slot

    def send(self, value: Any) -> Any:
        self._notes.enter(self._slot)
        try:
            return self._coroutine.send(value)
        finally:
            self._notes.leave()

    def throw(self, *error: Any) -> Any:
        self._notes.enter(self._slot)
        try:
            return self._coroutine.throw(*error)
        finally:
            self._notes.leave()

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._coroutine.__await__()
