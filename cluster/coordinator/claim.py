"""Claims jobs: the loop that turns waiting rows into running ones.

Owns the claim connection and the decision when to look next. A tick is one round trip: a claim of what the last look found,
and the next look behind it. Wakes on the doorbell, on room in the pool, and on its own timer.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection, AsyncCursor, errors, pq
from psycopg.types.string import ByteaBinaryLoader

from cluster import events, locks, statements
from cluster.coordinator.doorbell import Doorbell
from cluster.coordinator.job_types import JobType, forget
from cluster.coordinator.lease import Lease
from cluster.coordinator.look import Head, Looker, View
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.parked import ParkedKey
from cluster.coordinator.pool import Pool
from cluster.coordinator.refusal import find_refused, set_aside
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.frames import ID, PRIORITY, RUN_AT

DEADLINE = 5.0
"""Seconds that one round trip may take: longer than any lock may be waited for."""
LOOK_INTERVAL = 1.5
"""Seconds between looks of a node that sleeps: the most that a lost watch can cost."""
BUSY_INTERVAL = 0.002
"""Seconds between looks while jobs arrive often, so that a batch can gather."""
BUSY_FOR = 0.05
"""Seconds without a job after which a node goes on watch."""
PRODUCERS_INTERVAL = 0.02
"""Seconds between looks while transactions that have inserted keep everybody off the watch; of all nodes together."""
RETRY_INTERVAL = 0.01
"""Seconds until rows that could not be had are tried again; doubled each time, up to 64 times."""
CLAIM_BYTES = 16 * 2**20
"""Bytes that one claim may fetch, going by the rows seen before."""
FIRST_CLAIM = 8
"""Rows of the first claim of a type, when nobody knows how large they are."""
LOWEST_PRIORITY = 100


class Plan(NamedTuple):
    """One claim. priority: the worst it may take; slots: how many can begin at once; demand: how many to take.

    keys: to look after, of a type whose limit holds per key.
    """

    head: Head
    priority: int
    slots: int
    demand: int
    keys: list[str]

    @property
    def limited(self) -> bool:
        return self.head.room is not None or self.head.job_type.key is not None


class Sent(NamedTuple):
    """A claim on its way. lock: the answer says whether a limited one had the lock; None: it needs none."""

    rows: AsyncCursor[Any]
    lock: AsyncCursor[Any] | None


class Miss(NamedTuple):
    """A head that could not be had. until: CLOCK_MONOTONIC seconds before which it is not tried again.

    id: of the row at the head, if another one in its place may be tried at once; None: whatever is there.
    """

    times: int
    until: float
    id: int | None = None


class Claimer:
    """Claims for the pool. `tick` is one round trip."""

    def __init__(
        self, session: Session, doorbell: Doorbell, pool: Pool, looker: Looker, live_nodes: Callable[[], int]
    ) -> None:
        self.wakeup = Wakeup()
        self.lease: Lease | None = None
        """Under which to claim; None: not now (not registered, or draining)."""
        self._session = session
        self._doorbell = doorbell
        self._pool = pool
        self._looker = looker
        self._live_nodes = live_nodes
        self._parked = looker.parked
        self._heads: list[Head] = []
        """What the last look found, best first."""
        self._foreign: dict[tuple[int, str], int] = {}
        """Rows of queues that are others' business, as the last look found them."""
        self._limited: set[int] = set()
        """Types, by index, that had a limit when last looked at."""
        self._freed: set[int] = set()
        """Limited types, by index, that have got room since the last look."""
        self._wants_room = False
        """Something waits that had no place in this node."""
        self._due_at = 0.0
        """CLOCK_MONOTONIC seconds when the next row is due."""
        self._look_at = 0.0
        """CLOCK_MONOTONIC seconds when to look next if nothing rings."""
        self._rung = True
        """Something may have come that the last look did not see."""
        self._claimed_at: dict[int, float] = {}
        """When each type last got something: at equal priority types take turns, and the queues of one go by run_at."""
        self._missed: dict[tuple[int, str], Miss] = {}
        """Heads that could not be had, being locked or set aside: they must not keep the rest from being claimed."""
        self._queues: dict[int, tuple[str, int | None]] = {}
        """Queue and room of each table's best row when last seen: what to claim first when its doorbell rings."""
        self._careful = False
        """The last round trip failed: claim and look one by one, to find out what is in the way."""
        self._last_work = 0.0
        self._raw: tuple[AsyncConnection[Any], AsyncCursor[Any]] | None = None

    def ring(self) -> None:
        """Something may have come."""
        self._rung = True
        self.wakeup.set()

    def room(self) -> None:
        """A slot of this node is free."""
        if self._wants_room:
            self.wakeup.set()

    def limit_freed(self, job_type: JobType, keys: set[ParkedKey]) -> None:
        """Jobs of a limited type have ended, or of these keys: there may be room, whatever the last look said."""
        if keys:
            self._parked.add(job_type, keys)
        elif job_type.index in self._limited:
            self._freed.add(job_type.index)
            self._doorbell.limit_freed(job_type.oid)
        else:
            return
        self.ring()

    async def stop(self) -> None:
        """Claims nothing more, and lets other coordinators know that they must be on watch."""
        self.lease = None
        await self._hand_over(None)

    async def tick(self) -> float | None:
        """One round trip. Returns the seconds until the next one."""
        lease = self.lease
        if lease is None or not lease.valid:
            await self._hand_over(None)
            return None if lease is None else LOOK_INTERVAL
        if self._doorbell.take_changed():
            self._parked.sweep_soon()
        plan, passed = self._plan()
        if plan is None and passed and not self._rung and time.monotonic() < self._look_at:
            return self._look_at - time.monotonic()  # some room, but not for what waits
        self._rung = False
        self._freed.clear()
        async with self._session.use(DEADLINE) as connection:
            await self._looker.sweep(connection)
            claimed, view = await (self._one_by_one if self._careful else self._at_once)(connection, lease, plan)
            if view is None:
                return 0  # the same again, one by one
        now = time.monotonic()
        self._due_at = now + (math.inf if view.due_in is None else view.due_in)
        self._limited = view.limited
        self._heads = sorted(
            view.heads,
            key=lambda head: (head.priority, self._claimed_at.get(head.job_type.index, 0.0), head.run_at),
        )
        there = {(head.job_type.index, head.queue): head.id for head in self._candidates()}
        self._missed = {
            key: miss for key, miss in self._missed.items() if key in there and miss.id in {None, there[key]}
        }
        for head in reversed(self._heads):
            self._queues[head.job_type.oid] = head.queue, head.room
        try:
            await self._call_for_foreign(view)
            delay = await self._next(claimed)
        except TransientDatabaseError:
            delay = LOOK_INTERVAL  # without the direct connection nobody is on watch: look by the clock
        self._look_at = time.monotonic() + delay
        return delay

    # --- what to claim, and when ---

    def _plan(self) -> tuple[Plan | None, bool]:
        """The claim of this round trip: of the best head that this node has room for. Also: whether one had to be passed over.

        One claim a round trip, so that a better priority never waits longer than for one.
        """
        heads = self._takable() or self._rung_heads()
        plan, passed, alone_waits = None, False, False
        for place, head in enumerate(heads):
            slots, demand = self._pool.demand(head.job_type)
            keys = self._parked.some(head.job_type, head.queue)
            if demand or keys:  # even without room here, what is parked must be opened for others
                next_priority = heads[place + 1].priority if place + 1 < len(heads) else LOWEST_PRIORITY
                if head.room is not None and head.room < 2 * demand:
                    demand = slots  # what is claimed ahead would take places from those who could begin at once
                plan = Plan(head, next_priority, slots, _bounded(head.job_type, demand), keys)
                break
            passed = True
            # Room may be kept free for it, but not from a better priority.
            alone_waits = alone_waits or (head.job_type.exclusive and head.priority == heads[0].priority)
        if alone_waits:
            self._pool.reserve()
        else:
            self._pool.unreserve()
        return plan, passed

    def _takable(self) -> list[Head]:
        """What waits, best first, but for what could not be had just now."""
        now = time.monotonic()
        return [
            head
            for head in self._candidates()
            if (head.has_room or head.job_type.index in self._freed) and not self._is_missed(head, now)
        ]

    def _candidates(self) -> list[Head]:
        """What the last look found, best first, behind what is parked and may have room."""
        found = {(head.job_type.index, head.queue) for head in self._heads}
        return [
            Head(job_type, queue, LOWEST_PRIORITY, None, None, None)
            for job_type in self._looker.present
            for index, queue in self._parked.waiting()
            if index == job_type.index and (index, queue) not in found
        ] + self._heads

    def _is_missed(self, head: Head, now: float) -> bool:
        miss = self._missed.get((head.job_type.index, head.queue))
        return miss is not None and now < miss.until

    def _rung_heads(self) -> list[Head]:
        """Nothing was known to wait; whose doorbell rang has something now, most likely where it last had."""
        types = {job_type.oid: job_type for job_type in self._looker.present}
        return [
            Head(types[table], queue, LOWEST_PRIORITY, None, None, None if room is None else max(1, room))
            for table in self._doorbell.take_rung()
            if table in types and table in self._queues
            for queue, room in [self._queues[table]]
        ]

    async def _next(self, claimed: int) -> float:
        """Seconds until the next round trip."""
        now = time.monotonic()
        due_in = max(0.0, self._due_at - now)
        if self._doorbell.often_rung:
            await self._leave_watch()  # looking costs this node less than notifying costs the producers
        if claimed:
            self._last_work = now
        takable = self._takable()
        if any(self._pool.demand(head.job_type)[1] for head in takable):
            return 0
        passed = {head.job_type.oid for head in takable}
        self._wants_room = bool(passed)
        if passed:
            await self._hand_over(passed)
            if not any(self._pool.demand(job_type)[1] for job_type in self._looker.present):
                return LOOK_INTERVAL  # room wakes this loop
        waiting = [
            self._missed[head.job_type.index, head.queue].until - now
            for head in self._candidates()
            if head.has_room and self._is_missed(head, now)
        ]
        if waiting and min(waiting) < BUSY_FOR:
            return max(0.0, min(due_in, *waiting))
        due_in = min(due_in, *waiting, LOOK_INTERVAL)
        if claimed:
            return min(due_in, BUSY_INTERVAL)
        if now - self._last_work < BUSY_FOR and not self._doorbell.watching:
            return min(due_in, BUSY_INTERVAL * 2)
        return await self._watch(due_in, passed)

    async def _watch(self, due_in: float, passed: set[int]) -> float:
        """Goes on watch, but for tables whose rows this node has no room for. A new watch needs a second look before any sleep."""
        if self._doorbell.often_rung:
            return min(due_in, RETRY_INTERVAL)
        watch = await self._doorbell.watch(
            [job_type.oid for job_type in self._looker.present if job_type.oid not in passed]
        )
        if watch.new:
            return 0
        if watch.producers:
            return min(due_in, LOOK_INTERVAL, PRODUCERS_INTERVAL * self._live_nodes() * random.uniform(0.5, 1.5))
        return min(due_in, LOOK_INTERVAL * random.uniform(0.75, 1.25))

    async def _leave_watch(self) -> None:
        try:
            await self._doorbell.leave()
        except TransientDatabaseError:
            return  # its session is gone, and the watch with it

    async def _hand_over(self, tables: set[int] | None) -> None:
        try:
            await self._doorbell.hand_over(tables)
        except TransientDatabaseError:
            return

    async def _call_for_foreign(self, view: View) -> None:
        """The watch is the table's, so rings for rows of other queues come here: whoever has those queues must hear of them."""
        new = view.foreign.items() - self._foreign.items()
        self._foreign = view.foreign
        if new:
            await self._doorbell.call()

    # --- one round trip ---

    async def _at_once(
        self, connection: AsyncConnection[Any], lease: Lease, plan: Plan | None
    ) -> tuple[int, View | None]:
        """Claims, and looks behind it, in one pipeline. No view: something is in the way.

        The claim comes first: the BEGIN of a limited one must find no transaction open, and the rest of a pipeline is one.
        """
        before = time.monotonic()
        claim: Sent | None = None
        try:
            async with connection.pipeline():
                if plan is not None:
                    claim = await self._send(connection, lease, plan)
                if before >= self._due_at:
                    await self._looker.promote(connection)
                answers = await self._looker.send(connection)
        except psycopg.Error:
            if connection.closed:
                raise
            self._careful = True  # one by one, the statement that is to blame says why
            await connection.rollback()
            # A limited claim is a transaction of its own, and may stand although what came after it failed.
            stands = plan is not None and plan.limited and claim is not None and _has_rows(claim.rows)
            claim = claim if stands else None
        claimed = await self._take(plan, claim, lease, before) if plan is not None and claim is not None else 0
        return claimed, None if self._careful else await self._looker.read(answers)

    async def _one_by_one(
        self, connection: AsyncConnection[Any], lease: Lease, plan: Plan | None
    ) -> tuple[int, View | None]:
        """The same, a statement at a time: what is in the way is found, and left out of the next round trips."""
        claimed = await self._claim_alone(connection, lease, plan) if plan is not None else 0
        view = await self._looker.look(connection)
        if view.due_in is not None and view.due_in <= 0:
            await self._looker.promote(connection)
        self._careful = False
        return claimed, view

    async def _claim_alone(self, connection: AsyncConnection[Any], lease: Lease, plan: Plan) -> int:
        before = time.monotonic()
        job_type = plan.head.job_type
        try:
            claim = await self._send(connection, lease, plan)
        except errors.LockNotAvailable:
            await connection.rollback()  # the look that follows finds the locked table
            return 0
        except (errors.UndefinedTable, errors.UndefinedColumn):
            await connection.rollback()
            forget(job_type)
            self._looker.sweep_soon()
            return 0
        except (errors.OperationalError, errors.FeatureNotSupported, errors.ReadOnlySqlTransaction):
            raise
        except psycopg.Error as error:
            await connection.rollback()
            await find_refused(connection, job_type, _parameters(lease, plan), error)
            return 0
        return await self._take(plan, claim, lease, before)

    async def _send(self, connection: AsyncConnection[Any], lease: Lease, plan: Plan) -> Sent:
        """Sends one claim; in a pipeline, its answer is there only after that."""
        job_type = plan.head.job_type
        cursor = self._raw_cursor(connection)
        parameters = _parameters(lease, plan)
        if not plan.limited:
            return Sent(await cursor.execute(job_type.statement("claim_jobs"), parameters), None)
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        lock = await connection.execute(
            statements.statement("try_claim_lock"), {"class": locks.CLAIM, "table": job_type.oid}
        )
        if job_type.key is None:
            await cursor.execute(job_type.statement("claim_limited_jobs"), parameters)
        else:
            reach = self._parked.reach(job_type, plan.demand)
            parameters |= {"key": job_type.key.column, "keys": plan.keys, "reach": reach}
            await cursor.execute(job_type.statement("claim_keyed_jobs"), parameters)
        await connection.execute("COMMIT")
        return Sent(cursor, lock)

    async def _take(self, plan: Plan, claim: Sent, lease: Lease, before: float) -> int:
        """Hands claimed rows to the pool, best first."""
        job_type = plan.head.job_type
        cursor = claim.rows
        rows = await cursor.fetchall()
        now = time.monotonic()
        events.claimed(job_type.name, plan.head.queue, len(rows), now - before)
        key = job_type.index, plan.head.queue
        had_lock = claim.lock is not None and await claim.lock.fetchone() == ("true",)
        if job_type.key is not None and had_lock:
            self._parked.looked_after(job_type, plan.head.queue, plan.keys)
            self._parked.claimed(job_type, plan.demand, len(rows))
        if not rows:
            other_row_at_once = plan.head.id if job_type.key is not None and had_lock else None
            self._missed[key] = _miss(self._missed.get(key), now, other_row_at_once)
        else:
            self._missed.pop(key, None)
            self._claimed_at[job_type.index] = now
            _note_size(job_type, rows)
            if len(rows) > 1:
                rows.sort(key=itemgetter(PRIORITY, RUN_AT, ID))  # big-endian, so bytes sort as what they stand for
            result = cursor.pgresult
            assert result is not None
            oids = tuple(result.ftype(column) for column in range(result.nfields))
            self._pool.place(job_type, oids, rows, now, lease)
        return len(rows)

    def _raw_cursor(self, connection: AsyncConnection[Any]) -> AsyncCursor[Any]:
        """A cursor whose values are the bytes that the database sent: workers decode them."""
        if self._raw is None or self._raw[0] is not connection:
            self._raw = connection, _raw_cursor(connection)
        return self._raw[1]


def _miss(before: Miss | None, now: float, job_id: int | None) -> Miss:
    """Longer each time, jittered, so that nodes which compete for a limit do not stay in step."""
    times = min(before.times + 1, 7) if before is not None else 1
    return Miss(times, now + RETRY_INTERVAL * 2.0 ** (times - 1) * random.uniform(0.5, 1), job_id)


def _parameters(lease: Lease, plan: Plan) -> dict[str, Any]:
    job_type = plan.head.job_type
    return {
        "node": lease.node, "table": job_type.oid, "queue": plan.head.queue, "priority": plan.priority,
        "slots": plan.slots, "demand": plan.demand, "max_attempts": job_type.max_attempts,
        "set_aside": set_aside(job_type),
    }  # fmt: skip


def _raw_cursor(connection: AsyncConnection[Any]) -> AsyncCursor[Any]:
    cursor = connection.cursor(binary=True)
    for info in cursor.adapters.types:
        cursor.adapters.register_loader(info.oid, ByteaBinaryLoader)
        if info.array_oid:
            cursor.adapters.register_loader(info.array_oid, ByteaBinaryLoader)
    cursor.adapters.register_loader(0, ByteaBinaryLoader)
    return cursor


def _has_rows(cursor: AsyncCursor[Any]) -> bool:
    return cursor.pgresult is not None and cursor.pgresult.status == pq.ExecStatus.TUPLES_OK


def _bounded(job_type: JobType, demand: int) -> int:
    if not job_type.row_bytes:
        return min(demand, FIRST_CLAIM)
    return min(demand, max(1, int(CLAIM_BYTES / job_type.row_bytes)))


def _note_size(job_type: JobType, rows: list[tuple[bytes | None, ...]]) -> None:
    """Remembers the size of large rows for a while, so that a few small ones do not make the next claim too big."""
    sample = rows if len(rows) <= 16 else rows[:: len(rows) // 16]
    largest = max(sum(len(value) for value in row if value is not None) for row in sample)
    job_type.row_bytes = max(largest, job_type.row_bytes * 0.9)
