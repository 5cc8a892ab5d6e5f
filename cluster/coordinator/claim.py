"""Claims jobs: the loop that turns waiting rows into running ones.

Asks the backlogs of all job types for the best thing to do, makes one round trip of it, and tells them what came of that. Owns the
claim connection. Wakes on the doorbell, on room in the pool, and on its own timer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Any

import psycopg
from psycopg import AsyncConnection

from cluster import events
from cluster.coordinator import job_types, pipeline
from cluster.coordinator.backlog import LOWEST_PRIORITY, Backlog
from cluster.coordinator.causes import Cause
from cluster.coordinator.doorbell import Doorbell, Watch
from cluster.coordinator.finish import Finisher
from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.coordinator.look import Head
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.placement import Demand, Placement
from cluster.coordinator.refusal import settle_claim, settle_promotion
from cluster.coordinator.round_trip import Plan, Refusal, RoundTrip, Taken, Trip
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.frames import ID, PRIORITY, QUEUE, RUN_AT

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
AWAKE_FOR = 0.05
"""Seconds for which it stays awake for rows that could not be had."""
PRODUCERS_INTERVAL = 0.02
"""Seconds between looks while transactions that have inserted keep everybody off the watch; of all nodes together."""
OFTEN_INTERVAL = 0.01
"""Seconds between looks of a node that is kept off the watch by ringing too often."""


class Claimer:
    """Claims for the placement. `tick` is one round trip. search: seconds between searches for tables come or gone."""

    def __init__(
        self,
        session: Session,
        backlogs: Sequence[Backlog],
        doorbell: Doorbell,
        placement: Placement,
        finisher: Finisher,
        live_nodes: Callable[[], int],
        search: float,
    ) -> None:
        self.wakeup = Wakeup()
        self.lease: Lease | None = None
        """Under which to claim; None: not now (not registered, or draining)."""
        self._session = session
        self._backlogs = backlogs
        self._by_type = {backlog.job_type: backlog for backlog in backlogs}
        self._doorbell = doorbell
        self._placement = placement
        self._finisher = finisher
        self._live_nodes = live_nodes
        self._search = search
        self._searched_at = -math.inf
        self._round_trip = RoundTrip()
        self._wants_room = False
        """Something waits that had no place in this node."""
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
        self._settled = asyncio.Event()
        """No round trip is under way."""
        self._settled.set()

    def ring(self) -> None:
        """Something may have come."""
        for backlog in self._backlogs:
            backlog.bounds.rung()
        self.look_soon()

    def look_soon(self) -> None:
        """Some backlog knows of something new."""
        self._rung = True
        self.wakeup.set()

    def room(self) -> None:
        """A slot of this node is free."""
        if self._wants_room:
            self.wakeup.set()

    def limit_freed(self, job_type: JobType, keys: set[str]) -> None:
        """Jobs of a limited type have ended, or of these keys: there may be room, whatever the last look said."""
        backlog = self._by_type[job_type]
        if keys:
            backlog.parked.add(keys)
        elif backlog.limit is not None:
            backlog.free()
        else:
            return
        self.look_soon()

    def waits(self, job_type: JobType) -> float:
        """Jobs of a type have ended: seconds for which their outcome may wait to be written together with a claim."""
        backlog = self._by_type[job_type]
        if self._can_swap(backlog):
            self.look_soon()
            return LONGEST_SWAP
        before, last = self._claimed_at
        often = max(time.monotonic() - last, last - before) < LONGEST_MERGE
        return LONGEST_MERGE if often and self._can_merge(backlog) else 0.0

    async def stop(self) -> None:
        """Claims nothing more, and lets other coordinators know that they must be on watch. Returns when no claim is under way."""
        self.lease = None
        self._finisher.write_now()
        with contextlib.suppress(TransientDatabaseError, psycopg.Error):
            await self._doorbell.hand_over()
        await self._settled.wait()

    async def tick(self) -> float | None:
        """One round trip. Returns the seconds until the next one."""
        lease = self.lease
        if lease is None or not lease.valid:
            self._finisher.write_now()
            with contextlib.suppress(TransientDatabaseError):
                await self._doorbell.hand_over()
            return None if lease is None else LOOK_INTERVAL
        if self._doorbell.take_changed():
            for backlog in self._backlogs:
                backlog.parked.sweep_soon()
                backlog.bounds.look_whole()
        # While looks are slow, claims begin at the heads they have found.
        is_fast = not any(backlog.bounds.used for backlog in self._backlogs)
        fresh = is_fast or time.monotonic() < self._look_by
        plan, passed = self._plan(lease) if fresh else (None, False)
        if fresh and (plan is None or not plan.successes):
            self._finisher.write_now()
        if plan is None and passed and not self._rung and time.monotonic() < self._look_at:
            return self._look_at - time.monotonic()  # some room, but not for what waits
        self._rung = False
        looks = plan is None or not plan.swaps or time.monotonic() >= self._look_by
        trip, claimed = await self._make(lease, plan, looks=looks)
        if not looks:
            return max(0.0, self._look_by - time.monotonic())
        self._look_by = time.monotonic() + SWAP_FOR
        try:
            delay = await self._next(trip, claimed)
        except TransientDatabaseError:
            delay = LOOK_INTERVAL  # without the direct connection nobody is on watch: look by the clock
        self._look_at = time.monotonic() + delay
        return delay

    # --- one round trip ---

    async def _make(self, lease: Lease, plan: Plan | None, *, looks: bool) -> tuple[Trip, int]:
        """Also: how many jobs were claimed. TransientDatabaseError: the session is lost."""
        claimed = 0
        under_way = [] if plan is None else [plan]

        def take(plan: Plan, taken: Taken) -> None:
            nonlocal claimed
            if plan in under_way:
                under_way.remove(plan)
            claimed += self._take(plan, taken, lease)

        def following(plan: Plan) -> Plan | None:
            next_plan = self._following(plan, lease)
            under_way.extend([] if next_plan is None else [next_plan])
            return next_plan

        self._settled.clear()
        try:
            async with self._session.use(DEADLINE) as connection:
                if self.lease is not lease:
                    return Trip([]), 0  # stopped, or fenced, while another had the session
                await self._search_tables(connection)
                await self._sweep_parked(connection)
                due = [backlog for backlog in self._backlogs if backlog.is_present and backlog.is_due()]
                wanted = [b for b in self._backlogs if b.is_present and (b in due or b.wants_look())] if looks else None
                if plan is not None:
                    self._claimed_at = self._claimed_at[1], time.monotonic()
                trip = await self._round_trip.run(connection, lease, plan, take, following, due=due, looks=wanted)
                for refusal in trip.refusals:
                    if isinstance(refusal.what, Plan):
                        under_way.remove(refusal.what)
                        self._not_taken(refusal.what)
                    await self._settle(connection, lease, refusal, take)
        finally:
            for left in under_way:
                self._not_taken(left)
            self._settled.set()
        return trip, claimed

    async def _search_tables(self, connection: AsyncConnection[Any]) -> None:
        """Finds tables that have come, gone or been made anew since the last time."""
        if time.monotonic() - self._searched_at > self._search:
            before = [backlog.table for backlog in self._backlogs]
            await job_types.resolve(connection, [backlog.job_type for backlog in self._backlogs])
            self._searched_at = time.monotonic()
            for backlog, table in zip(self._backlogs, before, strict=True):
                backlog.searched(table)

    async def _sweep_parked(self, connection: AsyncConnection[Any]) -> None:
        """Looks for parked rows whose key has room, where that is due."""
        for backlog in self._backlogs:
            key = backlog.job_type.key
            if key is None or not backlog.is_present or not backlog.parked.is_sweep_due:
                continue
            parameters = {"table": backlog.table, "key": backlog.job_type.job_class.concurrency_key}
            command = Command(backlog.job_type.statement("find_parked_keys"), parameters | backlog.parked.sweeping())
            async with pipeline.sent(connection, [command]) as answers:
                answer = await answers.next()
            if answer.error is None:  # else the look that follows finds out why
                backlog.parked.swept(pipeline.rows(pipeline.adapter_of(connection), answer.results[-1]))

    async def _settle(
        self, connection: AsyncConnection[Any], lease: Lease, refusal: Refusal, take: Callable[[Plan, Taken], None]
    ) -> None:
        """Something was refused: whose matter is it?"""
        if refusal.cause is Cause.UNDEFINED:
            self._searched_at = -math.inf
        if isinstance(refusal.what, Plan):
            await settle_claim(connection, lease, self._round_trip, refusal.what, refusal, take)
        elif refusal.action == "promote":
            await settle_promotion(connection, refusal.what, refusal)
        else:
            refusal.what.look_failed(refusal.cause, refusal.error)

    # --- what to claim ---

    def _plan(self, lease: Lease) -> tuple[Plan | None, bool]:
        """The claim of this round trip: of the best head that this node has room for. Also: whether one had to be passed over.

        One claim a round trip, so that a better priority never waits longer than for one.
        """
        heads = self._claimable() or self._rung_heads()
        plan, passed, alone_waits = None, False, False
        for place, (backlog, head) in enumerate(heads):
            if head.id is None and backlog.bounds.used:
                continue
            demand = self._demand(backlog)
            keys = backlog.parked.some(head.queue)
            if demand.jobs or keys:  # even without room here, what is parked must be opened for others
                next_priority = heads[place + 1][1].priority if place + 1 < len(heads) else LOWEST_PRIORITY
                plan = self._plan_for(backlog, head, next_priority, demand, keys, lease)
                break
            passed = True
            # Room may be kept free for it, but not from a better priority.
            if (
                backlog.job_type.exclusive
                and head.priority == heads[0][1].priority
                and not self._placement.demand(backlog.job_type).jobs
            ):
                alone_waits = True
        if alone_waits:
            self._placement.reserve()
        else:
            self._placement.unreserve()
        return plan, passed

    def _claimable(self) -> list[tuple[Backlog, Head]]:
        """What may be claimed now, best first. At equal priority types take turns, and the queues of one go by run_at."""
        found = [
            (backlog, head)
            for backlog in self._backlogs
            if not backlog.is_empty and not self._finisher.is_stuck(backlog.job_type)
            for head in backlog.claimable(swappable=self._swappable(backlog))
        ]
        if len(found) > 1:
            # What is parked has no run_at: it goes ahead of what has the lowest priority, as nobody knows better.
            found.sort(
                key=lambda item: (item[1].id is not None, item[1].priority, item[0].claimed_at, item[1].run_at or 0)
            )
        return found

    def _rung_heads(self) -> list[tuple[Backlog, Head]]:
        """Nothing is known to wait; tables that rang, or where a row is due, have something now."""
        found = [(b, b.take_rung(due=b.is_due())) for b in self._backlogs if b.is_present and b.claims_held.is_over]
        return [(backlog, head) for backlog, head in found if head is not None]

    def _demand(self, backlog: Backlog) -> Demand:
        """How many jobs can begin at once, and how many are wanted, as the pool says; under a limit, within this node's share."""
        demand = self._placement.demand(backlog.job_type).at_most(backlog.claims_pace.rows)
        if backlog.limit is None:
            return demand
        if demand.jobs and backlog.room is not None and backlog.room < 2 * demand.jobs:
            # What is claimed ahead would take places from those who could begin at once.
            demand = demand._replace(jobs=demand.slots)
            self._placement.prefetches = self._placement.prefetches and demand.slots > 0
        if not demand.jobs or self._swappable(backlog):
            return demand
        places = backlog.share.places(backlog.limit, self._held(backlog))
        return demand._replace(slots=int(min(demand.slots, places)), jobs=int(min(demand.jobs, places)))

    def _held(self, backlog: Backlog) -> Callable[[], int]:
        """Jobs of the type that are running because of this node, in the eyes of the database."""
        job_type = backlog.job_type
        return lambda: self._placement.claimed(job_type) + len(self._finisher.unwritten(job_type).pending)

    def _can_swap(self, backlog: Backlog) -> bool:
        limit = backlog.reached_limit
        return limit is not None and self._can_write(backlog) and not backlog.share.exceeded(limit, self._held(backlog))

    def _can_merge(self, backlog: Backlog) -> bool:
        return self._can_write(backlog) and backlog.job_type.key is None and backlog.limit is None

    def _can_write(self, backlog: Backlog) -> bool:
        keeps = backlog.job_type.job_class.retention != timedelta(0)
        held = self._finisher.is_held(backlog.job_type)
        return self.lease is not None and keeps and not backlog.is_apart and not held

    def _swappable(self, backlog: Backlog) -> bool:
        return self._finisher.unwritten(backlog.job_type).has_successes and self._can_swap(backlog)

    def _following(self, plan: Plan, lease: Lease) -> Plan | None:
        """More jobs under the same limit have ended meanwhile: a swap for those, unless it is time to look.

        What the swap before has claimed has no slots yet, so some may seem free that are not: no more are claimed than have ended.
        """
        backlog = plan.backlog
        if not plan.swaps or time.monotonic() >= self._look_by or not lease.valid or not self._swappable(backlog):
            return None
        demand = self._demand(backlog)
        if not demand.jobs or self._claimable()[:1] != [(backlog, plan.head)]:
            return None
        next_plan = self._plan_for(backlog, plan.head, plan.priority, demand, [], lease)
        return next_plan if next_plan.swaps else None

    def _plan_for(
        self, backlog: Backlog, head: Head, priority: int, demand: Demand, keys: list[str], lease: Lease
    ) -> Plan:
        unwritten, successes = self._finisher.unwritten(backlog.job_type), []
        if backlog.room == 0 and demand.jobs and self._can_swap(backlog):
            successes = unwritten.take_successes(lease.node)
        elif backlog.limit is None and self._can_merge(backlog):
            successes = unwritten.take_few_successes(lease.node)
        if successes and unwritten.pending:
            self._finisher.wakeup.set()  # what the claimer does not write
        backlog.claiming()
        reach = backlog.parked.reach(demand.jobs)
        return Plan(backlog, head, priority, demand, keys, reach, successes, backlog.bounds.used, time.monotonic())

    def _not_taken(self, plan: Plan) -> None:
        """A claim has failed, or nobody knows."""
        if plan.successes:
            self._finisher.give_back(plan.backlog.job_type, plan.successes, written=False)
        plan.backlog.not_counted()

    def _take(self, plan: Plan, taken: Taken, lease: Lease) -> int:
        """Hands claimed rows to the pool, best first. Returns how many."""
        now = time.monotonic()
        backlog, head, rows = plan.backlog, plan.head, taken.rows
        # Rows are not claimed ahead for their last attempt: they need a slot, and nothing else may go ahead of them.
        ahead_in_vain = (
            not rows and plan.demand.jobs > 0 and not plan.demand.slots and (taken.had_lock or not plan.limited)
        )
        self._placement.prefetches = not ahead_in_vain
        if rows:  # first of all: workers begin while the rest is done
            if len(rows) > 1:
                rows.sort(key=itemgetter(PRIORITY, RUN_AT, ID))  # big-endian, so bytes sort as what they stand for
            self._placement.place(backlog.job_type, taken.oids, rows, now, lease)
            backlog.claimed(head)
        elif not plan.swaps and self._placement.prefetches:
            # Full keys were in the way, and are no more: what is at the head now may be tried at once.
            backlog.missed(head, head.id if backlog.job_type.key is not None and taken.had_lock else None)
        events.claimed(backlog.job_type.name, collections.Counter(row[QUEUE] for row in rows), now - plan.made_at)
        if backlog.job_type.key is not None and taken.had_lock:
            backlog.parked.looked_after(head.queue, plan.keys)
            backlog.parked.claimed(plan.demand.jobs, len(rows))
        if plan.successes:
            self._finisher.give_back(backlog.job_type, plan.successes, written=taken.written)
        if plan.swaps:
            if len(rows) < len(plan.successes):
                backlog.free_untold()
                backlog.counted(more=True)
                self._look_by = 0.0
            else:
                backlog.not_counted()
        elif taken.had_lock:
            backlog.counted(more=len(rows) >= plan.demand.jobs)
        else:
            backlog.not_counted()  # there is no limit, or another node has the lock
        return len(rows)

    # --- when to look ---

    async def _next(self, trip: Trip, claimed: int) -> float:
        """Seconds until the next round trip."""
        if trip.news:
            # The watch is the table's, so rings for rows of other queues come here: whoever has those must hear of them.
            with contextlib.suppress(TransientDatabaseError):
                await self._doorbell.call()
        present = [backlog for backlog in self._backlogs if backlog.is_present]
        due_in = min((backlog.due_in() for backlog in present), default=math.inf)
        if self._doorbell.often_rung:
            with contextlib.suppress(TransientDatabaseError):  # then the watch is gone with its session
                await self._doorbell.leave()  # looking costs this node less than notifying costs the producers
        self._quiet = 0 if claimed else self._quiet + 1
        takable = [backlog for backlog, _ in self._claimable()]
        for backlog in self._backlogs:
            if not backlog.has_rows:
                backlog.share.taken()
        if await self._watch_resting(present):
            return 0
        if any(self._demand(backlog).jobs for backlog in takable):
            return 0
        self._wants_room = bool(takable)
        if takable:
            with contextlib.suppress(TransientDatabaseError):
                await self._doorbell.hand_over(takable)
            if not any(self._placement.demand(backlog.job_type).jobs for backlog in present):
                return LOOK_INTERVAL  # room wakes this loop
        retries = [seconds for backlog in present for seconds in backlog.retries()]
        if retries and min(retries) < AWAKE_FOR:
            return max(0.0, min(due_in, *retries))
        due_in = min(due_in, LOOK_INTERVAL, *retries, *self._other_waits())
        tables = [backlog for backlog in present if backlog not in takable]
        watching = any(backlog.watched for backlog in present)
        if self._quiet < QUIET_LOOKS and not (watching and all(backlog.is_watched() for backlog in tables)):
            return min(due_in, BUSY_INTERVAL * 2.0**self._quiet)
        return await self._watch(due_in, tables)

    def _other_waits(self) -> list[float]:
        """Seconds until something is to be done that no ring tells of."""
        waits = [wait for backlog in self._backlogs for wait in (backlog.share.wait(), backlog.try_again_in())]
        rung = [b.bounds.whole_in() for b in self._backlogs if b.bounds.used and b.bounds.is_rung]
        return [max(0.0, wait) for wait in (*waits, *rung)]

    async def _watch_resting(self, present: Sequence[Backlog]) -> bool:
        """Goes on watch where nothing comes, so that busy tables alone are looked at. Whether there is a new watch."""
        if time.monotonic() < self._rested_at + RESTING:
            return False
        self._rested_at = time.monotonic()
        resting = [backlog for backlog in present if backlog.is_resting(RESTING)]
        if self._doorbell.pid is None or self._doorbell.often_rung or all(backlog.is_watched() for backlog in resting):
            return False
        with contextlib.suppress(TransientDatabaseError):
            return (await self._doorbell.watch(resting)).new
        return False

    async def _watch(self, due_in: float, tables: Sequence[Backlog]) -> float:
        """Goes on watch. Seconds until the next round trip."""
        if self._doorbell.often_rung:
            return min(due_in, OFTEN_INTERVAL)
        watch: Watch = await self._doorbell.watch(tables)
        if watch.new:
            return 0
        if watch.producers:
            return min(due_in, LOOK_INTERVAL, PRODUCERS_INTERVAL * self._live_nodes() * random.uniform(0.5, 1.5))
        return min(due_in, LOOK_INTERVAL * random.uniform(0.75, 1.25))
