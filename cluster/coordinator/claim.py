"""Claims jobs: the loop that turns waiting rows into running ones.

Owns the claim connection and the decision when to look next. A tick is one round trip: a claim of what the last look found,
and the next look behind it. Wakes on the doorbell, on room in the pool, and on its own timer.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable
from datetime import timedelta
from operator import itemgetter

from cluster import events
from cluster.coordinator.doorbell import Doorbell, Watch
from cluster.coordinator.finish import Finisher
from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.coordinator.look import Head, Look, Looker, View
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.parked import ParkedKey
from cluster.coordinator.pool import Pool
from cluster.coordinator.process import RawRow
from cluster.coordinator.round_trip import Plan, RoundTrip, Taken, Trip
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.coordinator.shares import Shares
from cluster.coordinator.waiting import LOWEST_PRIORITY, Waiting
from cluster.frames import ID, PRIORITY, RUN_AT

DEADLINE = 5.0
"""Seconds that one round trip may take: longer than any lock may be waited for."""
LOOK_INTERVAL = 1.5
"""Seconds between looks of a node that sleeps: the most that a lost watch can cost."""
BUSY_INTERVAL = 0.002
"""Seconds between looks while jobs arrive often, so that a batch can gather; doubled with each look that finds nothing."""
SWAP_FOR = 0.01
"""Seconds after a look for which rows are swapped without another: a better priority may wait for so much longer."""
LONGEST_SWAP = 0.5
"""Seconds that outcomes may wait for a claim in their place."""
LONGEST_MERGE = 0.003
"""Seconds that outcomes of a type without a limit may wait for the next claim, while claims come so often."""
QUIET_LOOKS = 4
"""So many looks that found nothing in a row, and a node goes on watch."""
RESTING = 0.25
"""Seconds without any row after which a table is put on watch, although this node is busy with others."""
LOCKED_FOR = 0.05
"""Seconds for which it stays awake for rows that could not be had, and until it tries again to promote those that are due."""
OVERDUE = 0.005
"""Seconds after which a row that is due, and that nobody could promote, must be locked."""
PRODUCERS_INTERVAL = 0.02
"""Seconds between looks while transactions that have inserted keep everybody off the watch; of all nodes together."""
OFTEN_INTERVAL = 0.01
"""Seconds between looks of a node that is kept off the watch by ringing too often."""
CLAIM_BYTES = 16 * 2**20
"""Bytes that one claim may fetch, going by the rows seen before."""
FIRST_CLAIM = 8
"""Rows of the first claim of a type, when nobody knows how large they are."""


class Claimer:
    """Claims for the pool. `tick` is one round trip."""

    def __init__(
        self,
        session: Session,
        doorbell: Doorbell,
        pool: Pool,
        finisher: Finisher,
        looker: Looker,
        live_nodes: Callable[[], int],
    ) -> None:
        self.wakeup = Wakeup()
        self.lease: Lease | None = None
        """Under which to claim; None: not now (not registered, or draining)."""
        self._session = session
        self._doorbell = doorbell
        self._pool = pool
        self._finisher = finisher
        self._looker = looker
        self._live_nodes = live_nodes
        self._parked = looker.parked
        self._waiting = Waiting(looker)
        self._shares = Shares(live_nodes)
        self._round_trip = RoundTrip(looker)
        self._wants_room = False
        """Something waits that had no place in this node."""
        self._due_at: dict[int, float] = {}
        """CLOCK_MONOTONIC seconds when the next row is due, by table, where one is scheduled."""
        self._look_at = 0.0
        """CLOCK_MONOTONIC seconds when to look next if nothing rings."""
        self._look_by = 0.0
        """Until when rows may be swapped without a look."""
        self._rung = True
        """Something may have come that the last look did not see."""
        self._claimed_at = (-math.inf, -math.inf)
        """CLOCK_MONOTONIC seconds of the last claim but one, and of the last."""
        self._rested_at = -math.inf
        """CLOCK_MONOTONIC seconds when tables where nothing comes were last put on watch."""
        self._quiet = 0
        """Looks in a row that have found nothing."""

    def ring(self) -> None:
        """Something may have come."""
        self._looker.rung()
        self._look_soon()

    def _look_soon(self) -> None:
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
        elif self._waiting.is_limited(job_type):
            self._waiting.freed(job_type)
            self._doorbell.limit_freed(job_type.oid)
        else:
            return
        self._look_soon()

    def waits(self, job_type: JobType) -> float:
        """Jobs of a type have ended: seconds for which their outcome may wait to be written together with a claim."""
        if self._can_swap(job_type):
            self._look_soon()
            return LONGEST_SWAP
        before, last = self._claimed_at
        often = max(time.monotonic() - last, last - before) < LONGEST_MERGE
        return LONGEST_MERGE if often and self._can_merge(job_type) else 0.0

    def _can_swap(self, job_type: JobType) -> bool:
        limit = self._waiting.reached_limit(job_type)
        return (
            limit is not None
            and self._can_write(job_type)
            and not self._shares.exceeded(job_type.index, limit, self._held(job_type))
        )

    def _can_merge(self, job_type: JobType) -> bool:
        return self._can_write(job_type) and job_type.key is None and not self._waiting.is_limited(job_type)

    def _can_write(self, job_type: JobType) -> bool:
        keeps = job_type.job_class.retention != timedelta(0)
        return self.lease is not None and keeps and not self._round_trip.careful

    def _swappable(self, job_type: JobType) -> bool:
        return self._finisher.has_successes(job_type) and self._can_swap(job_type)

    def _held(self, job_type: JobType) -> Callable[[], int]:
        """Jobs of the type that are running because of this node, in the eyes of the database."""
        return lambda: self._pool.claimed(job_type) + self._finisher.pending(job_type)

    async def stop(self) -> None:
        """Claims nothing more, and lets other coordinators know that they must be on watch."""
        self.lease = None
        self._finisher.write_now()
        with contextlib.suppress(TransientDatabaseError):
            await self._doorbell.hand_over()

    async def tick(self) -> float | None:
        """One round trip. Returns the seconds until the next one."""
        lease = self.lease
        if lease is None or not lease.valid:
            self._finisher.write_now()
            with contextlib.suppress(TransientDatabaseError):
                await self._doorbell.hand_over()
            return None if lease is None else LOOK_INTERVAL
        if self._doorbell.take_changed():
            self._parked.sweep_soon()
            self._looker.look_whole()
        # While looks are slow, claims begin at the heads they have found.
        fresh = self._looker.is_fast or time.monotonic() < self._look_by
        plan, passed = self._plan(lease) if fresh else (None, False)
        if fresh and (plan is None or not plan.successes):
            self._finisher.write_now()
        if plan is None and passed and not self._rung and time.monotonic() < self._look_at:
            return self._look_at - time.monotonic()  # some room, but not for what waits
        self._rung = False
        if plan is not None:
            self._claimed_at = self._claimed_at[1], time.monotonic()
        look = plan is None or not plan.swaps or time.monotonic() >= self._look_by
        trip, due, claimed = Trip(None), set[int](), 0
        under_way = [] if plan is None else [plan]

        def take(plan: Plan, taken: Taken) -> None:
            nonlocal claimed
            under_way.remove(plan)
            claimed += self._take(plan, taken, lease)

        def following(plan: Plan) -> Plan | None:
            next_plan = self._following(plan, lease)
            under_way.extend([] if next_plan is None else [next_plan])
            return next_plan

        try:
            async with self._session.use(DEADLINE) as connection:
                await self._looker.sweep(connection)
                due = self._due()
                looks = self._looks(due) if look else None
                trip = await self._round_trip.run(connection, lease, plan, take, following, due=due, looks=looks)
        finally:
            for plan in under_way:
                self._not_taken(plan)
        if trip.failed:
            return 0
        if trip.view is None:
            return max(0.0, self._look_by - time.monotonic())
        self._doorbell.looked()
        now = time.monotonic()
        locked = due and not trip.promoted
        self._due_at = {
            table: now + (LOCKED_FOR if locked and due_in < -OVERDUE else due_in)
            for table, due_in in trip.view.due_in.items()
        }
        self._look_by = now + SWAP_FOR
        try:
            delay = await self._next(trip.view, claimed)
        except TransientDatabaseError:
            delay = LOOK_INTERVAL  # without the direct connection nobody is on watch: look by the clock
        self._look_at = time.monotonic() + delay
        return delay

    def _looks(self, due: set[int]) -> list[Look]:
        """Where something may have come since the last look."""
        looks = self._looker.looks(self._doorbell.silent - due)
        self._doorbell.looking({look.job_type.oid for look in looks})
        self._waiting.looking()
        return looks

    def _due(self) -> set[int]:
        """Tables of which a row is due."""
        now = time.monotonic()
        return {table for table, due_at in self._due_at.items() if now >= due_at}

    # --- what to claim ---

    def _plan(self, lease: Lease) -> tuple[Plan | None, bool]:
        """The claim of this round trip: of the best head that this node has room for. Also: whether one had to be passed over.

        One claim a round trip, so that a better priority never waits longer than for one.
        """
        heads = self._waiting.takable(self._swappable) or self._waiting.rung(self._doorbell.take_rung() | self._due())
        plan, passed, alone_waits = None, False, False
        for place, head in enumerate(heads):
            if head.id is None and self._looker.is_slow(head.job_type):
                continue
            slots, demand = self._demand(head)
            keys = self._parked.some(head.job_type, head.queue)
            if demand or keys:  # even without room here, what is parked must be opened for others
                next_priority = heads[place + 1].priority if place + 1 < len(heads) else LOWEST_PRIORITY
                plan = self._plan_for(head, next_priority, slots, demand, keys, lease)
                break
            passed = True
            # Room may be kept free for it, but not from a better priority.
            if (
                head.job_type.exclusive
                and head.priority == heads[0].priority
                and not self._pool.demand(head.job_type)[1]
            ):
                alone_waits = True
        if alone_waits:
            self._pool.reserve()
        else:
            self._pool.unreserve()
        return plan, passed

    def _demand(self, head: Head) -> tuple[int, int]:
        """How many jobs can begin at once, and how many are wanted, as the pool says; under a limit, within this node's share."""
        slots, demand = self._pool.demand(head.job_type)
        if head.limit is None:
            return slots, demand
        if demand and head.room is not None and head.room < 2 * demand:
            demand = slots  # what is claimed ahead would take places from those who could begin at once
            self._pool.prefetches = self._pool.prefetches and slots > 0
        if not demand or self._swappable(head.job_type):
            return slots, demand
        places = self._shares.places(head.job_type.index, head.limit, self._held(head.job_type))
        return int(min(slots, places)), int(min(demand, places))

    def _following(self, plan: Plan, lease: Lease) -> Plan | None:
        """More jobs under the same limit have ended meanwhile: a swap for those, unless it is time to look.

        What the swap before has claimed has no slots yet, so some may seem free that are not: no more are claimed than have ended.
        """
        job_type = plan.head.job_type
        if not plan.swaps or time.monotonic() >= self._look_by or not lease.valid or not self._swappable(job_type):
            return None
        slots, demand = self._demand(plan.head)
        if not demand or self._waiting.takable(self._swappable)[:1] != [plan.head]:
            return None
        next_plan = self._plan_for(plan.head, plan.priority, slots, demand, [], lease)
        return next_plan if next_plan.swaps else None

    def _plan_for(self, head: Head, priority: int, slots: int, demand: int, keys: list[str], lease: Lease) -> Plan:
        successes = []
        if head.room == 0 and demand and self._can_swap(head.job_type):
            successes = self._finisher.take_successes(head.job_type, lease.node)
        elif head.limit is None and self._can_merge(head.job_type):
            successes = self._finisher.take_few_successes(head.job_type, lease.node)
        self._waiting.taking(head.job_type)
        demand = _bounded(head.job_type, demand)
        reach = self._parked.reach(head.job_type, demand)
        from_head = self._looker.is_slow(head.job_type)
        return Plan(head, priority, slots, demand, keys, reach, successes, from_head, time.monotonic())

    def _not_taken(self, plan: Plan) -> None:
        """A claim has failed, or nobody knows."""
        if plan.successes:
            self._finisher.return_successes(plan.head.job_type, plan.successes, written=False)
        self._waiting.not_counted(plan.head)

    def _take(self, plan: Plan, taken: Taken, lease: Lease) -> int:
        """Hands claimed rows to the pool, best first. Returns how many."""
        now = time.monotonic()
        head, rows = plan.head, taken.rows
        # Rows are not claimed ahead for their last attempt: they need a slot, and nothing else may go ahead of them.
        ahead_in_vain = not rows and plan.demand > 0 and not plan.slots and (taken.had_lock or not plan.limited)
        self._pool.prefetches = not ahead_in_vain
        if rows:  # first of all: workers begin while the rest is done
            if len(rows) > 1:
                rows.sort(key=itemgetter(PRIORITY, RUN_AT, ID))  # big-endian, so bytes sort as what they stand for
            self._pool.place(head.job_type, taken.oids, rows, now, lease)
            self._waiting.claimed(head)
            _note_size(head.job_type, rows)
        elif not plan.swaps and self._pool.prefetches:
            # Full keys were in the way, and are no more: what is at the head now may be tried at once.
            self._waiting.missed(head, head.id if head.job_type.key is not None and taken.had_lock else None)
        events.claimed(head.job_type.name, head.queue, len(rows), now - plan.made_at)
        if head.job_type.key is not None and taken.had_lock:
            self._parked.looked_after(head.job_type, head.queue, plan.keys)
            self._parked.claimed(head.job_type, plan.demand, len(rows))
        if plan.successes:
            self._finisher.return_successes(head.job_type, plan.successes, written=taken.written)
        if plan.swaps:
            if len(rows) < len(plan.successes):
                self._doorbell.limit_freed(head.job_type.oid)
                self._waiting.counted(head, more=True)
                self._look_by = 0.0
        elif taken.had_lock:
            self._waiting.counted(head, more=len(rows) >= plan.demand)
        else:
            self._waiting.not_counted(head)  # another node has the lock
        return len(rows)

    # --- when to look ---

    async def _next(self, view: View, claimed: int) -> float:
        """Seconds until the next round trip."""
        if self._waiting.seen(view):
            # The watch is the table's, so rings for rows of other queues come here: whoever has those must hear of them.
            with contextlib.suppress(TransientDatabaseError):
                await self._doorbell.call()
        due_in = max(0.0, min(self._due_at.values(), default=math.inf) - time.monotonic())
        if self._doorbell.often_rung:
            with contextlib.suppress(TransientDatabaseError):  # then the watch is gone with its session
                await self._doorbell.leave()  # looking costs this node less than notifying costs the producers
        self._quiet = 0 if claimed else self._quiet + 1
        takable = self._waiting.takable(self._swappable)
        self._shares.keep(self._waiting.with_room())
        if await self._watch_resting():
            return 0
        if any(self._demand(head)[1] for head in takable):
            return 0
        passed = {head.job_type.oid for head in takable}
        self._wants_room = bool(passed)
        if passed:
            with contextlib.suppress(TransientDatabaseError):
                await self._doorbell.hand_over(passed)
            if not any(self._pool.demand(job_type)[1] for job_type in self._looker.present):
                return LOOK_INTERVAL  # room wakes this loop
        retries = self._waiting.retries()
        if retries and min(retries) < LOCKED_FOR:
            return max(0.0, min(due_in, *retries))
        due_in = min(due_in, *retries, self._shares.wait(), LOOK_INTERVAL, max(0.0, self._looker.whole_in()))
        tables = [job_type.oid for job_type in self._looker.present if job_type.oid not in passed]
        if self._quiet < QUIET_LOOKS and not (self._doorbell.watching and self._doorbell.is_watched(tables)):
            return min(due_in, BUSY_INTERVAL * 2.0**self._quiet)
        return await self._watch(due_in, tables)

    async def _watch_resting(self) -> bool:
        """Goes on watch where nothing comes, so that busy tables alone are looked at. Whether there is a new watch."""
        if time.monotonic() < self._rested_at + RESTING:
            return False
        self._rested_at = time.monotonic()
        resting = self._looker.resting(RESTING)
        if self._doorbell.pid is None or self._doorbell.often_rung or self._doorbell.is_watched(resting):
            return False
        with contextlib.suppress(TransientDatabaseError):
            return (await self._go_on_watch(resting)).new
        return False

    async def _go_on_watch(self, tables: list[int]) -> Watch:
        """A new watch needs a second look, a whole one, before any sleep."""
        watch = await self._doorbell.watch(tables)
        if watch.new:
            self._looker.look_whole()
        return watch

    async def _watch(self, due_in: float, tables: list[int]) -> float:
        """Goes on watch. Seconds until the next round trip."""
        if self._doorbell.often_rung:
            return min(due_in, OFTEN_INTERVAL)
        watch = await self._go_on_watch(tables)
        if watch.new:
            return 0
        if watch.producers:
            return min(due_in, LOOK_INTERVAL, PRODUCERS_INTERVAL * self._live_nodes() * random.uniform(0.5, 1.5))
        return min(due_in, LOOK_INTERVAL * random.uniform(0.75, 1.25))


def _bounded(job_type: JobType, demand: int) -> int:
    if not job_type.row_bytes:
        return min(demand, FIRST_CLAIM)
    return min(demand, max(1, int(CLAIM_BYTES / job_type.row_bytes)))


def _note_size(job_type: JobType, rows: list[RawRow]) -> None:
    """Remembers the size of large rows for a while, so that a few small ones do not make the next claim too big."""
    sample = rows if len(rows) <= 16 else rows[:: len(rows) // 16]
    largest = max(sum(len(value) for value in row if value is not None) for row in sample)
    job_type.row_bytes = max(largest, job_type.row_bytes * 0.9)
