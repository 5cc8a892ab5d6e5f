"""Looks for work and claims it: the loop that turns waiting rows into running ones.

Owns the claim connection and the decision when to look next. Wakes on the doorbell, on room in the pool, and on its own timer.
"""

from __future__ import annotations

import random
import time
from operator import itemgetter
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection, AsyncCursor, errors
from psycopg.types.string import ByteaBinaryLoader

from cluster import events, locks, statements
from cluster.coordinator.doorbell import Doorbell
from cluster.coordinator.job_types import JobType, forget, resolve
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pool import Pool
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.frames import ID, PRIORITY, RUN_AT

LOOK_INTERVAL = 1.5
"""Seconds between looks of a node that sleeps: the most that a lost watch can cost."""
BUSY_INTERVAL = 0.002
"""Seconds between looks while jobs arrive often, so that a batch can gather."""
BUSY_FOR = 0.05
"""Seconds without a job after which a node goes on watch."""
RETRY_INTERVAL = 0.01
"""Seconds until the next look at rows that could not be had."""
SET_ASIDE_FOR = 60.0
PROMOTE_BATCH = 1000
CLAIM_BYTES = 16 * 2**20
"""Bytes that one claim may fetch, going by the rows seen before."""
FIRST_CLAIM = 8
"""Rows of the first claim of a type, when nobody knows how large they are."""


class Head(NamedTuple):
    """The best waiting row of one queue of one job type. room: under the type's limit; None: it has none."""

    job_type: JobType
    queue: str
    priority: int
    room: int | None


class Claimer:
    """Claims for the pool. `tick` is one look with the claims that follow from it."""

    def __init__(
        self,
        session: Session,
        doorbell: Doorbell,
        pool: Pool,
        types: list[JobType],
        queues: tuple[str, ...],
        sweep: float,
    ) -> None:
        self.wakeup = Wakeup()
        self.lease: Lease | None = None
        """Under which to claim; None: not now (not registered, or draining)."""
        self._session = session
        self._doorbell = doorbell
        self._pool = pool
        self._types = types
        self._queues = None if "*" in queues else list(queues)
        self._sweep = sweep
        self._swept_at = 0.0
        self._claimed_at: dict[tuple[int, str], float] = {}
        """When each type's queue last got something: equal priorities take turns."""
        self._last_work = 0.0
        self._misses = 0
        self._raw: tuple[AsyncConnection[Any], AsyncCursor[Any]] | None = None

    async def tick(self) -> float | None:
        """One look. Returns the seconds until the next one."""
        lease = self.lease
        if lease is None or not lease.valid:
            await self._doorbell.leave()
            return None if lease is None else LOOK_INTERVAL
        async with self._session.use() as connection:
            await self._sweep_tables(connection)
            heads, due_in = await self._look(connection)
            if due_in is not None and due_in <= 0:
                await self._promote(connection)
                return 0
            claimed, full = await self._claim_all(connection, lease, heads)
        try:
            return await self._next_look(heads, claimed, full, due_in)
        except TransientDatabaseError:
            return LOOK_INTERVAL  # without the direct connection nobody is on watch: look by the clock

    # --- when to look next ---

    async def _next_look(self, heads: list[Head], claimed: int, full: bool, due_in: float | None) -> float:
        now = time.monotonic()
        due_in = LOOK_INTERVAL if due_in is None else due_in
        if claimed:
            self._last_work, self._misses = now, 0
            if self._doorbell.often_rung:
                await self._doorbell.leave()
            return min(due_in, BUSY_INTERVAL if not full else LOOK_INTERVAL)
        if full:
            # Room wakes this loop; until then others should have what waits.
            await self._doorbell.hand_over()
            return min(due_in, LOOK_INTERVAL)
        takable = [head for head in heads if head.room is None or head.room > 0]
        if takable:
            self._misses += 1
            growing = RETRY_INTERVAL * 2.0 ** min(self._misses, 6)
            return min(due_in, LOOK_INTERVAL, growing * random.uniform(0.5, 1))
        self._misses = 0
        if now - self._last_work < BUSY_FOR and not self._doorbell.watching:
            return min(due_in, BUSY_INTERVAL * 2)
        return await self._watch(due_in)

    async def _watch(self, due_in: float) -> float:
        """Goes on watch; what it newly watches needs a second look before it may sleep."""
        watch = await self._doorbell.watch([job_type.oid for job_type in self._types if job_type.oid])
        if watch.new:
            return 0
        if watch.producers:
            return min(due_in, RETRY_INTERVAL)
        return min(due_in, LOOK_INTERVAL * random.uniform(0.75, 1.25))

    # --- looking ---

    async def _look(self, connection: AsyncConnection[Any]) -> tuple[list[Head], float | None]:
        """What waits in every table, best first, and in how many seconds the next row is due."""
        heads: list[Head] = []
        due: list[float] = []
        for job_type, cursor in await self._look_at_tables(connection):
            for queue, priority, room, due_in in await cursor.fetchall():
                if queue is not None:
                    heads.append(Head(job_type, queue, priority, room))
                elif due_in is not None:
                    due.append(due_in)
        heads.sort(key=lambda head: (head.priority, self._claimed_at.get((head.job_type.index, head.queue), 0.0)))
        return heads, min(due, default=None)

    async def _look_at_tables(self, connection: AsyncConnection[Any]) -> list[tuple[JobType, AsyncCursor[Any]]]:
        now = time.monotonic()
        present = [job_type for job_type in self._types if job_type.oid and job_type.locked_until < now]
        try:
            async with connection.pipeline():
                return [
                    (
                        job_type,
                        await connection.execute(
                            job_type.statement("look_for_jobs"),
                            {"table": job_type.oid, "queues": self._queues},
                            binary=True,
                        ),
                    )
                    for job_type in present
                ]
        except errors.LockNotAvailable:
            await connection.rollback()
            await self._leave_out_locked(connection, present)
            return await self._look_at_tables(connection)  # at once: the others' rows may not ring again
        except (errors.UndefinedTable, errors.UndefinedColumn):
            # A table was dropped or renamed under us: find out which, go on with the others.
            await connection.rollback()
            await resolve(connection, self._types)
            return []

    async def _leave_out_locked(self, connection: AsyncConnection[Any], types: list[JobType]) -> None:
        """Somebody holds a whole table locked: find out which, go on with the others."""
        for job_type in types:
            try:
                await connection.execute(
                    job_type.statement("look_for_jobs"), {"table": job_type.oid, "queues": self._queues}, binary=True
                )
            except errors.LockNotAvailable:
                job_type.locked_until = time.monotonic() + LOOK_INTERVAL

    async def _sweep_tables(self, connection: AsyncConnection[Any]) -> None:
        now = time.monotonic()
        if now - self._swept_at > self._sweep:
            await resolve(connection, self._types)
            self._swept_at = now

    async def _promote(self, connection: AsyncConnection[Any]) -> None:
        async with connection.pipeline():
            for job_type in self._types:
                if job_type.oid and job_type.locked_until < time.monotonic():
                    await connection.execute(job_type.statement("promote_jobs"), {"limit": PROMOTE_BATCH})

    # --- claiming ---

    async def _claim_all(self, connection: AsyncConnection[Any], lease: Lease, heads: list[Head]) -> tuple[int, bool]:
        """Claims from the best priority down. Returns how many, and whether work was left for want of room in this node."""
        claimed, full, alone_waits, waiting = 0, False, False, 100
        for place, head in enumerate(heads):
            if head.room is not None and head.room <= 0:
                continue
            slots, demand = self._pool.demand(head.job_type)
            if not demand:
                full, waiting = True, min(waiting, head.priority)
                # Room may be kept free for it, but not from a better priority.
                alone_waits = alone_waits or (head.job_type.exclusive and head.priority <= waiting)
                continue
            next_priority = heads[place + 1].priority if place + 1 < len(heads) else 100
            got = await self._claim(connection, lease, head, next_priority, slots, demand)
            claimed, waiting = claimed + got, min(waiting, head.priority) if got else waiting
        if alone_waits:
            self._pool.reserve()
        else:
            self._pool.unreserve()
        return claimed, full

    async def _claim(
        self, connection: AsyncConnection[Any], lease: Lease, head: Head, priority: int, slots: int, demand: int
    ) -> int:
        job_type = head.job_type
        parameters = {
            "node": lease.node, "table": job_type.oid, "queue": head.queue, "priority": priority, "slots": slots,
            "demand": _bounded(job_type, demand), "max_attempts": job_type.max_attempts,
            "set_aside": self._set_aside(job_type),
        }  # fmt: skip
        before = time.monotonic()
        try:
            cursor = await self._execute(connection, head, parameters)
        except (errors.UndefinedTable, errors.UndefinedColumn):
            forget(job_type)
            self._swept_at = 0.0
            return 0
        except (errors.OperationalError, errors.FeatureNotSupported, errors.ReadOnlySqlTransaction):
            raise
        except psycopg.Error as error:
            await connection.rollback()
            await self._find_refused(connection, head, parameters, error)
            return 0
        rows = await cursor.fetchall()
        now = time.monotonic()
        events.claimed(job_type.name, head.queue, len(rows), now - before)
        if rows:
            self._claimed_at[job_type.index, head.queue] = now
            _note_size(job_type, rows)
            if len(rows) > 1:
                rows.sort(key=itemgetter(PRIORITY, RUN_AT, ID))  # big-endian, so bytes sort as what they stand for
            result = cursor.pgresult
            assert result is not None
            oids = tuple(result.ftype(column) for column in range(result.nfields))
            self._pool.place(job_type, oids, rows, now, lease)
        return len(rows)

    async def _execute(
        self, connection: AsyncConnection[Any], head: Head, parameters: dict[str, Any]
    ) -> AsyncCursor[Any]:
        cursor = self._raw_cursor(connection)
        if head.room is None:
            return await cursor.execute(head.job_type.statement("claim_jobs"), parameters)
        async with connection.pipeline():
            await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            await connection.execute(
                statements.statement("try_claim_lock"), {"class": locks.CLAIM, "table": head.job_type.oid}
            )
            await cursor.execute(head.job_type.statement("claim_limited_jobs"), parameters)
            await connection.execute("COMMIT")
        return cursor

    def _raw_cursor(self, connection: AsyncConnection[Any]) -> AsyncCursor[Any]:
        """A cursor whose values are the bytes that the database sent: workers decode them."""
        if self._raw is None or self._raw[0] is not connection:
            cursor = connection.cursor(binary=True)
            for info in cursor.adapters.types:
                cursor.adapters.register_loader(info.oid, ByteaBinaryLoader)
                if info.array_oid:
                    cursor.adapters.register_loader(info.array_oid, ByteaBinaryLoader)
            cursor.adapters.register_loader(0, ByteaBinaryLoader)
            self._raw = connection, cursor
        return self._raw[1]

    # --- rows that can't be claimed ---

    def _set_aside(self, job_type: JobType) -> list[int]:
        if job_type.set_aside:
            now = time.monotonic()
            job_type.set_aside = {job_id: until for job_id, until in job_type.set_aside.items() if until > now}
        return list(job_type.set_aside)

    async def _find_refused(
        self, connection: AsyncConnection[Any], head: Head, parameters: dict[str, Any], error: psycopg.Error
    ) -> None:
        """A user's trigger or constraint refused the claim's update of some row: find it, fail it or leave it alone."""
        job_type = head.job_type
        found = False
        cursor = await connection.execute(job_type.statement("list_claimable_jobs"), parameters)
        for (job_id,) in await cursor.fetchall():
            try:
                async with connection.transaction(force_rollback=True):
                    others = {**parameters, "demand": 1, "set_aside": parameters["set_aside"]}
                    await connection.execute(job_type.statement("probe_job"), {**others, "id": job_id})
            except errors.OperationalError:
                raise
            except psycopg.Error as refusal:
                found = True
                job_type.set_aside[job_id] = time.monotonic() + SET_ASIDE_FOR
                events.job_set_aside(job_type.name, job_id, refusal)
                await self._refuse(connection, job_type, job_id, refusal)
        if not found:
            events.claim_refused(job_type.name, error)

    async def _refuse(
        self, connection: AsyncConnection[Any], job_type: JobType, job_id: int, refusal: psycopg.Error
    ) -> None:
        text = f"the database refuses to let this job run: {refusal}"
        try:
            await connection.execute(job_type.statement("refuse_job"), {"id": job_id, "error": text})
        except errors.OperationalError:
            raise
        except psycopg.Error:
            return  # refused as well: the row stays as it is


def _bounded(job_type: JobType, demand: int) -> int:
    if not job_type.row_bytes:
        return min(demand, FIRST_CLAIM)
    return max(1, min(demand, int(CLAIM_BYTES / job_type.row_bytes)))


def _note_size(job_type: JobType, rows: list[tuple[bytes | None, ...]]) -> None:
    """Remembers the size of large rows for a while, so that a few small ones do not make the next claim too big."""
    sample = rows if len(rows) <= 16 else rows[:: len(rows) // 16]
    largest = max(sum(len(value) for value in row if value is not None) for row in sample)
    job_type.row_bytes = max(largest, job_type.row_bytes * 0.9)
