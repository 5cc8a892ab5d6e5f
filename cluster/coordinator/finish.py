"""Writes outcomes: group commit. While outcomes wait, all of them go in one statement per table, again and again. Successes may
wait a moment for the claimer, which then writes them with its next claim.

Owns the finish connection and every ended attempt until the database has it, or has said that the claim was lost. What a table or a
row refuses is kept, and holds up nothing else.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from cluster import events, metrics, statements
from cluster.coordinator import arrays, pipeline
from cluster.coordinator.causes import WHY_HELD, Cause, brief, cause_of
from cluster.coordinator.claims import Claim, Outcome
from cluster.coordinator.job_types import JobType, exists, forget
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.refusal import NO_ROWS, ROWS_OWN, SHORT, is_lost, search
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold, Pace, Troubles
from cluster.coordinator.unwritten import MOST_REFUSED, Unwritten, success_parameters
from cluster.error_text import shorten, storable, without_row
from cluster.fingerprint import FAILURES, fingerprint
from cluster.frames import ATTEMPTS, QUEUE, SCHEDULED_FOR, WAIT, integer

LARGEST_BATCH = 2000
LOCKED_PAUSE = 0.005
"""Seconds until rows that somebody else has locked are tried again; doubled each time. Mostly it is another node's claim, whose
snapshot was older: it has locked the row, found it taken, and lets go at its commit."""
LONGEST_LOCKED_PAUSE = 0.5
MAY_PASS = 3
"""Failures in a row for what may pass by itself, such as a deadlock, before rows are tried one by one."""
PASSING_PAUSE = 0.05
WAITS_AGAIN = {"retry", "scheduled", "not_started"}
WAIT_FOR_TAKEN = 1.0
"""Seconds that a job waits as `retry` which can't become claimable at once, since another row is in its way."""

_FLOAT8 = struct.Struct(">d")


class Finisher:
    """Takes ended attempts from the pool and writes them.

    limit_freed: called when a limited type may have room again, or these keys.
    waits: seconds for which successes of a type may wait for the claimer to write them with its next claim; 0: it will not.
    names_all: every job gets a line in the log, not only one that fails.
    """

    def __init__(
        self,
        session: Session,
        types: list[JobType],
        troubles: Troubles,
        limit_freed: Callable[[JobType, set[str]], None],
        waits: Callable[[JobType], float],
        *,
        names_all: bool = False,
    ) -> None:
        self.wakeup = Wakeup()
        self.ended: Counter[str] = Counter()
        """Attempts whose end is written: failed ones by status, `retry`, `failed` or `timed_out`; the others by outcome."""
        self._session = session
        self._limit_freed = limit_freed
        self._waits = waits
        self._names_all = names_all
        self._tables = {job_type: _Table(job_type, troubles) for job_type in types}
        self._alarm: asyncio.TimerHandle | None = None
        """Wakes this loop when the claimer has not taken what waits for it."""
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, outcomes: list[Outcome]) -> None:
        """Ended attempts, from the pool."""
        if not outcomes:
            return
        self._idle.clear()
        types = {outcome.claim.job_type for outcome in outcomes}
        for job_type in types:
            unwritten = self._tables[job_type].unwritten
            unwritten.pending += outcomes if len(types) == 1 else [o for o in outcomes if o.claim.job_type is job_type]
            wait = self._waits(job_type)
            if wait:
                self._wait(unwritten, wait)
            else:
                unwritten.waits_until = None
                self.wakeup.set()

    def _wait(self, unwritten: Unwritten, seconds: float) -> None:
        """For the claimer, from now or from before."""
        until = time.monotonic() + seconds
        unwritten.waits_until = until if unwritten.waits_until is None else min(until, unwritten.waits_until)
        loop = asyncio.get_running_loop()
        if self._alarm is None or self._alarm.cancelled() or self._alarm.when() > loop.time() + seconds:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_later(seconds, self._write_overdue)

    def _write_overdue(self) -> None:
        self._alarm = None
        self.wakeup.set()

    def write_now(self) -> None:
        """The claimer has something else to do."""
        for table in self._tables.values():
            if table.unwritten.pending and table.unwritten.waits_until is not None:
                table.unwritten.waits_until = None
                self.wakeup.set()

    def unwritten(self, job_type: JobType) -> Unwritten:
        """For the claimer to take from."""
        return self._tables[job_type].unwritten

    def is_held(self, job_type: JobType) -> bool:
        """Outcomes of the type are not to be written for now."""
        return not self._tables[job_type].hold.is_over

    def is_stuck(self, job_type: JobType) -> bool:
        """So many outcomes can't be written that no more jobs of the type must be claimed."""
        table = self._tables[job_type]
        refused = len(table.unwritten) if table.hold.until else len(table.unwritten.refused)
        return refused > MOST_REFUSED

    def give_back(self, job_type: JobType, taken: list[Outcome], *, written: bool) -> None:
        """See Unwritten."""
        self.unwritten(job_type).give_back(taken, written=written)
        if written:
            self._count(job_type, taken)
        self.wakeup.set()  # to write what was not written, or to say that there is nothing more

    @property
    def waiting(self) -> int:
        """Outcomes that the database does not have yet."""
        return sum(len(table.unwritten) for table in self._tables.values())

    def claims(self) -> Iterator[Claim]:
        """Of the outcomes that the database does not have yet, those being written included."""
        return (claim for table in self._tables.values() for claim in table.unwritten.claims())

    @property
    def is_drained(self) -> bool:
        """Everything is written, but for rows that can't be."""
        return self._idle.is_set()

    async def drained(self) -> None:
        """Returns once everything is written, but for rows that can't be."""
        await self._idle.wait()

    async def tick(self) -> float | None:
        """Writes all that waits, a batch of each type in turn. Returns the seconds until the next one; None: until there is one."""
        for table in self._tables.values():
            if table.unwritten.locked or table.unwritten.refused:
                table.unwritten.take_back()
        while ready := [table for table in self._tables.values() if table.unwritten.is_ready and table.hold.is_over]:
            for table in ready:
                await self._write_some(table)
        if all(table.unwritten.is_settled or not table.hold.is_over for table in self._tables.values()):
            self._idle.set()
        soonest = min(max(table.unwritten.next_at(), table.hold.until) for table in self._tables.values())
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())

    # --- one table ---

    async def _write_some(self, table: _Table) -> None:
        """TransientDatabaseError: the session is lost, and all is pending again."""
        unwritten = table.unwritten
        unwritten.waits_until = None
        rows = table.pace.rows
        unwritten.writing, unwritten.pending = unwritten.pending[:rows], unwritten.pending[rows:]
        if not table.job_type.oid:
            await self._keep_or_drop(table)
            return
        try:
            for batch in table.batches(unwritten.writing):
                await self._write(table, batch)
                table.took(batch.outcomes)
        finally:
            unwritten.pending, unwritten.writing = unwritten.writing + unwritten.pending, []
            self._limit_freed(table.job_type, table.take_freed_keys())

    async def _write(self, table: _Table, batch: _Batch) -> None:
        """Writes one batch. Whatever becomes of it, nothing of it is to be written again but what has been put back."""
        before = time.monotonic()
        try:
            async with self._session.use() as connection:
                try:
                    self._settle(table, batch, await _written(connection, table.job_type, batch))
                    table.worked()
                except psycopg.Error as error:
                    if is_lost(connection, error):
                        raise
                    await self._refused(connection, table, batch, error)
        except psycopg.Error as error:  # of what was tried afterwards
            table.put_back(batch.outcomes)
            table.hold.begin("table_refuses_outcomes", brief(error))
        metrics.finish_seconds.observe(time.monotonic() - before)

    def _settle(self, table: _Table, batch: _Batch, written: _Written) -> None:
        """A statement has worked. What it has not hit is locked, or was written before, or is lost."""
        job_type = table.job_type
        table.freed_keys |= written.keys
        if len(written.hit) == len(batch.outcomes):
            table.locked_pause = LOCKED_PAUSE / 2
            self._count(job_type, batch.outcomes)
            return
        missed = [place for place in range(len(batch.outcomes)) if place not in written.hit]
        there = [
            o for place, o in enumerate(batch.outcomes) if place in written.hit or written.held.get(place) is False
        ]
        self._count(job_type, there)
        locked = [batch.outcomes[place] for place in missed if written.held.get(place)]
        if locked:
            table.locked_pause = min(LONGEST_LOCKED_PAUSE, table.locked_pause * 2)
            table.unwritten.locked.append((time.monotonic() + table.locked_pause, locked))
        elif written.hit:
            table.locked_pause = LOCKED_PAUSE / 2
        lost = [batch.outcomes[place].claim.id for place in missed if place not in written.held]
        if lost:
            events.claims_lost(job_type.name, lost)

    # --- what is refused ---

    async def _refused(
        self, connection: AsyncConnection[Any], table: _Table, batch: _Batch, error: psycopg.Error
    ) -> None:
        """By a statement as a whole."""
        cause = cause_of(error)
        if (
            batch.name == "delete_finished_jobs" and cause in ROWS_OWN
        ):  # another table still references a row: keep them
            await self._write_inside(connection, table, batch._replace(name="finish_succeeded_jobs"))
            return
        if cause is Cause.PASSING and table.failures < MAY_PASS:
            table.failures += 1
            at = time.monotonic() + PASSING_PAUSE * 2.0**table.failures
            table.unwritten.locked.append((at, batch.outcomes))
        elif cause is Cause.SLOW and table.pace.too_slow():
            table.put_back(batch.outcomes)  # the next batch is smaller
        elif cause in NO_ROWS:
            if cause is Cause.UNDEFINED and not await _is_there(connection, table.job_type):
                forget(table.job_type)  # the claimer looks for it again
            table.put_back(batch.outcomes)
            table.hold.begin(WHY_HELD[cause], brief(error))
        else:
            await self._write_one_by_one(connection, table, batch, error)

    async def _write_inside(self, connection: AsyncConnection[Any], table: _Table, batch: _Batch) -> None:
        """In a use of the session that has begun."""
        try:
            self._settle(table, batch, await _written(connection, table.job_type, batch))
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise
            await self._refused(connection, table, batch, error)

    async def _write_one_by_one(
        self, connection: AsyncConnection[Any], table: _Table, batch: _Batch, first: psycopg.Error
    ) -> None:
        """Finds the rows that refuse, writes the others, and puts back those for which there is no time now."""

        async def write(places: list[int]) -> int:
            part = batch._replace(outcomes=[batch.outcomes[place] for place in places])
            written = await _written(connection, table.job_type, part)
            self._settle(table, part, written)
            return len(written.hit)

        found = await search(connection, list(range(len(batch.outcomes))), write)
        if found.fault is not None:
            table.put_back(batch.outcomes)
            table.hold.begin(WHY_HELD.get(cause_of(found.fault), "table_refuses_outcomes"), brief(found.fault))
            return
        table.hold.end()
        table.put_back([batch.outcomes[place] for place in found.untried])
        for place, error in found.refused:
            await self._write_otherwise(connection, table, batch.outcomes[place], error)

    async def _write_otherwise(
        self, connection: AsyncConnection[Any], table: _Table, outcome: Outcome, error: psycopg.Error
    ) -> None:
        """A row refuses its outcome: a shorter text may be let in, or another status; else it is tried again later."""
        for other in _instead_of(outcome, error):
            batch = _Batch("finish_jobs", outcome.claim.lease.node, [other])
            try:
                written = await _written(connection, table.job_type, batch)
            except psycopg.Error as second:
                if is_lost(connection, second):
                    raise
                continue
            self._settle(table, batch, written)
            if other.status == "failed" and outcome.status != "failed":
                events.job_set_aside(table.job_type.name, outcome.claim.id, error)
            return
        table.refuse(outcome, error)

    async def _keep_or_drop(self, table: _Table) -> None:
        """The table can't be found. Outcomes are kept while it may come back under its name; one that was dropped has no rows."""
        outcomes, table.unwritten.writing = table.unwritten.writing, []
        table.put_back(outcomes)
        async with self._session.use() as connection:
            there = await exists(connection, table.job_type.last_oid)
        if there:
            table.hold.begin("table_missing", "its outcomes are kept")
        else:
            lost = [*table.unwritten.pending]
            table.unwritten.pending = []
            table.hold.end()
            events.claims_lost(table.job_type.name, [outcome.claim.id for outcome in lost])

    # --- metrics and log ---

    def _count(self, job_type: JobType, written: list[Outcome]) -> None:
        """Per batch and label set, not per job."""
        series: dict[tuple[bytes | None, str], list[Outcome]] = {}
        for outcome in written:
            series.setdefault((outcome.claim.head[QUEUE], outcome.outcome), []).append(outcome)
        for (queue, name), outcomes in series.items():
            if name == "released":
                self.ended[name] += len(outcomes)
                metrics.released.labels(job_type.name).inc(len(outcomes))
                continue
            labels = job_type.name, metrics.queue_label(queue)
            metrics.finished.labels(*labels, name).inc(len(outcomes))
            metrics.run_seconds.observe((*labels, name), [outcome.ended - outcome.begun for outcome in outcomes])
            waits = [max(0.0, _seconds(o.claim.head[WAIT]) + o.begun - o.claim.claimed_at) for o in outcomes]
            metrics.wait_seconds.observe(labels, waits)
            if name in FAILURES:
                self.ended.update(outcome.status for outcome in outcomes)
                for outcome in outcomes:
                    _tell_failure(job_type, outcome)
                continue
            self.ended[name] += len(outcomes)
            for o in outcomes if self._names_all else ():
                events.job_finished(job_type.name, o.claim.id, integer(o.claim.head[ATTEMPTS]), name, o.ended - o.begun)


class _Batch(NamedTuple):
    """Outcomes for one statement, all under one node's id: after a fence there may be some under the one before."""

    name: str
    node: UUID
    outcomes: list[Outcome]


class _Written(NamedTuple):
    """hit: places in the batch that were written. held: of the others, see list_held_claims. keys: that have room now."""

    hit: set[int]
    held: dict[int, bool]
    keys: set[str]


class _Table:
    """What the finisher knows of one job type."""

    def __init__(self, job_type: JobType, troubles: Troubles) -> None:
        self.job_type = job_type
        self.unwritten = Unwritten()
        self.hold = Hold(troubles, job_type.name)
        """While it lasts nothing of the type is written."""
        self.pace = Pace(LARGEST_BATCH)
        self.locked_pause = LOCKED_PAUSE / 2
        self.failures = 0
        """In a row, for what may pass."""
        self.freed_keys: set[str] = set()
        self._troubles = troubles

    def batches(self, outcomes: list[Outcome]) -> list[_Batch]:
        """Of one statement and one lease each."""
        deletes = self.job_type.job_class.retention == timedelta(0)
        success = "delete_finished_jobs" if deletes else "finish_succeeded_jobs"
        found: dict[tuple[str, int], list[Outcome]] = {}
        for outcome in outcomes:
            name = success if outcome.status == "succeeded" else "finish_jobs"
            if deletes and outcome.claim.head[SCHEDULED_FOR] is not None:  # its schedule is told by an update
                name = "finish_jobs"
            found.setdefault((name, id(outcome.claim.lease)), []).append(outcome)  # a node's UUID is slow to hash
        return [_Batch(name, batch[0].claim.lease.node, batch) for (name, _), batch in found.items()]

    def took(self, outcomes: list[Outcome]) -> None:
        """These are written, or have been put elsewhere."""
        gone = set(map(id, outcomes))
        writing = self.unwritten.writing
        self.unwritten.writing = [] if len(gone) == len(writing) else [o for o in writing if id(o) not in gone]
        if not self.unwritten.refused and not self.unwritten.pending:
            self.unwritten.refused_pause.worked()
            self._troubles.end(self, self.job_type.name, "outcome_refused")

    def worked(self) -> None:
        """A statement has."""
        self.hold.end()
        self.pace.worked()
        self.failures = 0

    def put_back(self, outcomes: list[Outcome]) -> None:
        """To be tried again as soon as the type may be written."""
        self.unwritten.pending = outcomes + self.unwritten.pending

    def refuse(self, outcome: Outcome, error: psycopg.Error) -> None:
        """To be tried again later. It is running until then, and counts under its limit."""
        refused = self.unwritten.refused
        if not refused:
            self.unwritten.refused_pause.failed()
        refused.append(outcome)
        detail = f"row {outcome.claim.id}: {brief(error)}"
        self._troubles.begin(self, self.job_type.name, "outcome_refused", detail, len(refused))

    def take_freed_keys(self) -> set[str]:
        keys, self.freed_keys = self.freed_keys, set()
        return keys


def _instead_of(outcome: Outcome, error: psycopg.Error) -> Iterator[Outcome]:
    """What to write into a row that refuses its outcome, likeliest first; nothing for what is not the row's fault."""
    text = None if outcome.error is None else shorten(outcome.error, SHORT)
    if text != outcome.error:
        yield outcome._replace(error=text)
        yield outcome._replace(error=shorten(outcome.error or "", SHORT // 10))
    cause = cause_of(error)
    if cause in ROWS_OWN and outcome.status in WAITS_AGAIN:
        yield outcome._replace(status="retry", delay=max(WAIT_FOR_TAKEN, outcome.delay or 0.0), error=text)
    if cause in ROWS_OWN:
        reason = shorten(
            f"the database refuses the outcome {outcome.status!r} of this job: {without_row(error)}", SHORT
        )
        yield outcome._replace(status="failed", outcome="failed", delay=None, error=reason, attempts=0, crashes=0)


async def _written(connection: AsyncConnection[Any], job_type: JobType, batch: _Batch) -> _Written:
    """psycopg.Error: the statement was refused, and nothing of it is written."""
    said = {outcome.claim.id: storable(outcome.said, "ascii") for outcome in batch.outcomes if outcome.said is not None}
    commands = [Command(statements.text("say_next").encode(), {"said": json.dumps(said)})] if said else []
    commands.append(Command(job_type.statement(batch.name), _parameters(connection, batch)))
    *_, answer = await pipeline.ask(connection, commands)
    rows = pipeline.rows(pipeline.adapter_of(connection), answer)
    hit = {row[0] - 1 for row in rows}
    keys = {row[1] for row in rows if row[1] is not None} if job_type.key is not None else set()
    if len(hit) == len(batch.outcomes):
        return _Written(hit, {}, keys)
    missed = [place for place in range(len(batch.outcomes)) if place not in hit]
    claims = [batch.outcomes[place].claim for place in missed]
    parameters = {
        "id": arrays.BigIntegers([claim.id for claim in claims]),
        "locked_at": arrays.Timestamps([claim.locked_at for claim in claims]),
        "node": batch.node,
    }
    (answer,) = await pipeline.ask(connection, [Command(job_type.statement("list_held_claims"), parameters)])
    held = {missed[place - 1]: running for place, running in pipeline.rows(pipeline.adapter_of(connection), answer)}
    return _Written(hit, held, keys)


def _parameters(connection: AsyncConnection[Any], batch: _Batch) -> dict[str, Any]:
    values = success_parameters(batch.outcomes)
    if batch.name != "finish_jobs":
        return values
    encoding = connection.info.parameter_status("server_encoding") or "UTF8"
    python_encoding = _PYTHON_ENCODINGS.get(encoding, "ascii")
    outcomes = batch.outcomes
    return values | {
        "status": [outcome.status for outcome in outcomes],
        "delay": arrays.Floats([outcome.delay for outcome in outcomes]),
        "error": [None if o.error is None else storable(o.error, python_encoding) for o in outcomes],
        "attempts": arrays.Integers([outcome.attempts for outcome in outcomes]),
        "crashes": arrays.Integers([outcome.crashes for outcome in outcomes]),
        "failure": [outcome.outcome if outcome.outcome in FAILURES else None for outcome in outcomes],
        "fingerprint": [fingerprint(o.outcome, o.error) if o.outcome in FAILURES else None for o in outcomes],
    }


async def _is_there(connection: AsyncConnection[Any], job_type: JobType) -> bool:
    """Its table still has its name, and the columns that the cluster writes."""
    name = ".".join('"' + part.replace('"', '""') + '"' for part in job_type.table)
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = ANY (%s) AND NOT attisdropped",
        [name, ["id", "status", "run_at", "attempts_count", "crashes_count", "last_error", "started_at", "finished_at",
                "locked_at", "locked_by", "cancel_requested_at", "updated_at"]],
    )  # fmt: skip
    return await cursor.fetchone() == (12,)


def _tell_failure(job_type: JobType, outcome: Outcome) -> None:
    attempt = integer(outcome.claim.head[ATTEMPTS])
    if outcome.status == "retry":
        events.job_retry(job_type.name, outcome.claim.id, attempt, outcome.error or "", outcome.delay or 0.0)
    else:
        events.job_failed(job_type.name, outcome.claim.id, attempt, outcome.status, outcome.error or "")


def _seconds(value: bytes | None) -> float:
    seconds: float = _FLOAT8.unpack(value or bytes(8))[0]
    return seconds


_PYTHON_ENCODINGS = {
    "UTF8": "utf-8", "LATIN1": "latin-1", "LATIN9": "iso8859-15", "WIN1252": "cp1252", "WIN1251": "cp1251",
    "KOI8R": "koi8-r", "EUC_JP": "euc-jp", "SQL_ASCII": "ascii",
}  # fmt: skip
