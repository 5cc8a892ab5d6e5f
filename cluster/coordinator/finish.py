"""Writes outcomes: group commit. While outcomes wait, all of them go in one statement per table, again and again. Successes may
wait a moment for the claimer, which then writes them with its next claim.

Owns the finish connection and every ended attempt until the database has it, or has said that the claim was lost.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, errors

from cluster import events, metrics
from cluster.coordinator import arrays, pipeline
from cluster.coordinator.job_types import JobType, forget
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.parked import ParkedKey
from cluster.coordinator.pipeline import Command
from cluster.coordinator.pool import Finished
from cluster.coordinator.process import Key
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.error_text import storable
from cluster.frames import LOCKED_AT, QUEUE, WAIT

LARGEST_BATCH = 2000
MOST_TAKEN = 64
"""Successes that the claimer writes with a claim of a type without a limit: with more of them two connections are faster than one.
"""
LOCKED_PAUSE = 0.005
"""Seconds until rows that somebody else has locked are tried again; doubled each time. Mostly it is another node's claim, whose
snapshot was older: it has locked the row, found it taken, and lets go at its commit."""
LONGEST_LOCKED_PAUSE = 0.5
TABLE_LOCKED_PAUSE = 1.0
"""Seconds until a table that somebody holds locked as a whole is tried again; the others go on."""
REFUSED_PAUSE = 60.0
"""Seconds until rows whose update a trigger or constraint refuses are tried again."""

_FLOAT8 = struct.Struct(">d")


class Finisher:
    """Takes ended attempts from the pool and writes them. limit_freed: called when a limited type may have room again.

    waits: seconds for which successes of a type may wait for the claimer to write them with its next claim; 0: it will not.
    """

    def __init__(
        self,
        session: Session,
        types: list[JobType],
        limit_freed: Callable[[JobType, set[ParkedKey]], None],
        waits: Callable[[JobType], float],
    ) -> None:
        self.wakeup = Wakeup()
        self.written = 0
        self.released = 0
        self._session = session
        self._types = types
        self._limit_freed = limit_freed
        self._waits = waits
        self._pending: dict[int, list[Finished]] = {}
        self._later: list[tuple[float, int, list[Finished]]] = []
        """Batches to try again, with the time from which to do so."""
        self._writing: list[Finished] = []
        self._timer: asyncio.TimerHandle | None = None
        """Until when the claimer has time to take what waits; None: that is to be written here."""
        self._with_claimer: list[list[Finished]] = []
        """Successes that the claimer is writing, by claim."""
        self._freed_keys: set[ParkedKey] = set()
        self._away: TransientDatabaseError | None = None
        """Why a part of the last batch went back to the pending ones."""
        self._locked_pause = LOCKED_PAUSE / 2
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, finished: list[Finished]) -> None:
        """Ended attempts, from the pool."""
        for item in finished:
            self._pending.setdefault(item[1][0], []).append(item)
        if finished:
            self._idle.clear()
            wait = min(self._waits(self._types[index]) for index in {item[1][0] for item in finished})
            if wait:
                self._wait(wait)
            else:
                self.write_now()

    # --- successes that the claimer writes with a claim ---

    def _wait(self, seconds: float) -> None:
        """For the claimer, from now or from before."""
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + seconds:
            self._stop_timer()
            self._timer = loop.call_later(seconds, self.write_now)

    def write_now(self) -> None:
        """The claimer has something else to do."""
        self._stop_timer()
        if self._pending:
            self.wakeup.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def has_successes(self, job_type: JobType) -> bool:
        """Whether there is something to swap."""
        return any(report[3] == "succeeded" for _, report in self._pending.get(job_type.index, ()))

    def pending(self, job_type: JobType) -> int:
        """Outcomes of a type that nobody has begun to write."""
        return len(self._pending.get(job_type.index, ()))

    def take_few_successes(self, job_type: JobType, node: UUID) -> list[Finished]:
        """As `take_successes`, or none if there are many."""
        few = self.pending(job_type) <= MOST_TAKEN
        return self.take_successes(job_type, node) if few else []

    def take_successes(self, job_type: JobType, node: UUID) -> list[Finished]:
        """Those of a type under this node's id; `return_successes` must follow, unless there are none."""
        pending = self._pending.pop(job_type.index, [])
        taken = [item for item in pending if item[1][3] == "succeeded" and item[0].lease.node == node]
        rest = [item for item in pending if item[1][3] != "succeeded" or item[0].lease.node != node]
        if rest:
            self._pending[job_type.index] = rest
            self.write_now()
        if not self._pending:
            self._stop_timer()
        if taken:
            self._with_claimer.append(taken)
        return taken

    def return_successes(self, job_type: JobType, taken: list[Finished], *, written: bool) -> None:
        """The end of what was taken. Not written: some are lost or locked, or nobody knows; all are written here, once more."""
        self._with_claimer.remove(taken)
        if written:
            self._count(job_type, taken)
        else:
            self._pending.setdefault(job_type.index, []).extend(taken)
            self._stop_timer()
        self.wakeup.set()  # to write what was not written, or to say that there is nothing more

    @property
    def waiting(self) -> int:
        """Outcomes that the database does not have yet."""
        return sum(map(len, [*self._pending.values(), *(batch for _, _, batch in self._later), *self._with_claimer]))

    def keys(self) -> set[Key]:
        """Of the outcomes that the database does not have yet, those being written included."""
        batches = [*self._pending.values(), *(batch for _, _, batch in self._later), self._writing, *self._with_claimer]
        return {(report[0], report[1]) for batch in batches for _, report in batch}

    async def drained(self) -> None:
        """Returns once everything is written, but for rows that can't be."""
        await self._idle.wait()

    async def tick(self) -> float | None:
        """Writes all that waits. Returns the seconds until the next batch is to be tried again; None: none is."""
        self._take_back()
        while self._pending and self._timer is None:
            index = next(iter(self._pending))
            batch, rest = self._pending[index][:LARGEST_BATCH], self._pending[index][LARGEST_BATCH:]
            if rest:
                self._pending[index] = rest
            else:
                del self._pending[index]
            self._writing = batch
            await self._write_type(self._types[index], batch)
            self._writing = []
            if self._away is not None:
                away, self._away = self._away, None
                raise away
        if self._pending:
            return None  # the claimer's
        if not self._later:
            if not self._with_claimer:
                self._idle.set()
            return None
        soonest = min(when for when, _, _ in self._later) - time.monotonic()
        if soonest > 1 and not self._with_claimer:
            self._idle.set()  # only rows that are refused for good
        return max(0.0, soonest)

    def _take_back(self) -> None:
        now = time.monotonic()
        ready = [entry for entry in self._later if entry[0] <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        for _, index, batch in ready:
            self._pending.setdefault(index, []).extend(batch)

    # --- one table ---

    async def _write_type(self, job_type: JobType, batch: list[Finished]) -> None:
        if not job_type.oid:
            return  # the table is gone, and its rows with it
        by_statement: dict[tuple[str, UUID], list[Finished]] = {}
        success = "delete_finished_jobs" if job_type.job_class.retention == timedelta(0) else "finish_succeeded_jobs"
        for item in batch:
            # Of one node id each: after a fence there may be outcomes under the one before.
            name = success if item[1][3] == "succeeded" else "finish_jobs"
            by_statement.setdefault((name, item[0].lease.node), []).append(item)
        for (name, _), items in by_statement.items():
            await self._write(job_type, items, name)
        self._limit_freed(job_type, self._freed_keys)
        self._freed_keys = set()

    async def _write(self, job_type: JobType, batch: list[Finished], name: str) -> None:
        """Writes one batch; a batch that is refused for good is halved down to the row."""
        before = time.monotonic()
        try:
            async with self._session.use() as connection:
                command = Command(job_type.statement(name), self._parameters(connection, batch, name))
                answers = await pipeline.ask(connection, [command])
                rows = pipeline.rows(pipeline.adapter_of(connection), answers[0])
                hit = {row[0] for row in rows}
                missed = [item for item in batch if item[1][1] not in hit]
                held = await self._held(connection, job_type, missed) if missed else {}
        except errors.LockNotAvailable:
            self._later.append((time.monotonic() + TABLE_LOCKED_PAUSE, job_type.index, batch))
            return
        except TransientDatabaseError as error:
            self._pending.setdefault(job_type.index, []).extend(batch)
            self._away = error
            return
        except (errors.UndefinedTable, errors.UndefinedColumn):
            forget(job_type)
            return
        except psycopg.Error as error:
            await self._refused(job_type, batch, name, error)
            return
        metrics.finish_seconds.observe(time.monotonic() - before)
        if job_type.key is not None:
            keys = dict(rows)
            self._freed_keys |= {
                ParkedKey((claim.row[QUEUE] or b"").decode(), keys[report[1]])
                for claim, report in batch
                if keys.get(report[1]) is not None
            }
        written = [item for item in batch if item[1][1] in hit or held.get(item[1][1]) is False] if missed else batch
        self._count(job_type, written)
        locked = [item for item in missed if held.get(item[1][1])]
        if locked:
            self._locked_pause = min(LONGEST_LOCKED_PAUSE, self._locked_pause * 2)
            self._later.append((time.monotonic() + self._locked_pause, job_type.index, locked))
        elif hit:
            self._locked_pause = LOCKED_PAUSE / 2
        lost = [item[1][1] for item in missed if item[1][1] not in held]
        if lost:
            events.claims_lost(job_type.name, lost)

    async def _refused(self, job_type: JobType, batch: list[Finished], name: str, error: psycopg.Error) -> None:
        if name == "delete_finished_jobs":
            await self._write(
                job_type, batch, "finish_succeeded_jobs"
            )  # another table still references a row: keep them
        elif len(batch) > 1:
            half = len(batch) // 2
            await self._write(job_type, batch[:half], name)
            await self._write(job_type, batch[half:], name)
        else:
            await self._set_aside(job_type, batch[0], error)

    async def _set_aside(self, job_type: JobType, item: Finished, error: psycopg.Error) -> None:
        """A trigger or constraint refuses the outcome of one row. Fail the job if that is allowed, else try again later."""
        claim, report = item
        events.job_set_aside(job_type.name, report[1], error)
        text = f"the database refuses the outcome {report[2]!r} of this job: {error}"
        failed = (*report[:2], "failed", "failed", None, text, 0, 0, *report[8:])
        try:
            async with self._session.use() as connection:
                cursor = await connection.execute(
                    job_type.statement("finish_jobs"), self._parameters(connection, [(claim, failed)])
                )
                written = await cursor.fetchone() is not None
        except (psycopg.Error, TransientDatabaseError):
            written = False
        if written:
            self._count(job_type, [(claim, failed)])
        else:
            self._later.append((time.monotonic() + REFUSED_PAUSE, job_type.index, [item]))

    async def _held(
        self, connection: AsyncConnection[Any], job_type: JobType, missed: list[Finished]
    ) -> dict[int, bool]:
        parameters = {
            "id": arrays.BigIntegers([report[1] for _, report in missed]),
            "locked_at": arrays.Timestamps([claim.row[LOCKED_AT] for claim, _ in missed]),
            "node": missed[0][0].lease.node,
        }
        cursor = await connection.execute(job_type.statement("list_held_claims"), parameters, binary=True)
        return dict(await cursor.fetchall())

    def _parameters(
        self, connection: AsyncConnection[Any], batch: list[Finished], name: str = "finish_jobs"
    ) -> dict[str, Any]:
        values = success_parameters(batch)
        if name != "finish_jobs":
            return values
        encoding = connection.info.parameter_status("server_encoding") or "UTF8"
        python_encoding = _PYTHON_ENCODINGS.get(encoding, "ascii")
        reports = [report for _, report in batch]
        return values | {
            "status": [report[2] for report in reports],
            "delay": arrays.Floats([report[4] for report in reports]),
            "error": [None if report[5] is None else storable(report[5], python_encoding) for report in reports],
            "attempts": arrays.Integers([report[6] for report in reports]),
            "crashes": arrays.Integers([report[7] for report in reports]),
        }

    # --- metrics ---

    def _count(self, job_type: JobType, written: list[Finished]) -> None:
        """Per batch and label set, not per job."""
        self.written += len(written)
        series: dict[tuple[bytes | None, str], list[Finished]] = {}
        for item in written:
            series.setdefault((item[0].row[QUEUE], item[1][3]), []).append(item)
        for (queue, outcome), items in series.items():
            if outcome == "released":
                self.released += len(items)
                metrics.released.labels(job_type.name).inc(len(items))
                continue
            labels = job_type.name, (queue or b"").decode()
            metrics.finished.labels(*labels, outcome).inc(len(items))
            metrics.run_seconds.observe((*labels, outcome), [report[9] - report[8] for _, report in items])
            metrics.wait_seconds.observe(
                labels,
                [max(0.0, _seconds(claim.row[WAIT]) + report[8] - claim.claimed_at) for claim, report in items],
            )


def success_parameters(batch: list[Finished]) -> dict[str, Any]:
    """Of finish_succeeded_jobs, and of the finishing half of swap_limited_jobs. All are of one node id."""
    return {
        "node": batch[0][0].lease.node,
        "id": arrays.BigIntegers([report[1] for _, report in batch]),
        "locked_at": arrays.Timestamps([claim.row[LOCKED_AT] for claim, _ in batch]),
        "begun": arrays.Floats([max(0.0, report[8] - claim.claimed_at) for claim, report in batch]),
    }


def _seconds(value: bytes | None) -> float:
    seconds: float = _FLOAT8.unpack(value or bytes(8))[0]
    return seconds


_PYTHON_ENCODINGS = {
    "UTF8": "utf-8", "LATIN1": "latin-1", "LATIN9": "iso8859-15", "WIN1252": "cp1252", "WIN1251": "cp1251",
    "KOI8R": "koi8-r", "EUC_JP": "euc-jp", "SQL_ASCII": "ascii",
}  # fmt: skip
