"""What is known to wait, and what of it may be tried now. Pure: filled by looks and by the answers to claims."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cluster.coordinator.job_types import JobType
from cluster.coordinator.look import Head, Looker, View

RETRY_INTERVAL = 0.01
"""Seconds until rows that could not be had are tried again; doubled each time, up to 64 times."""
LOWEST_PRIORITY = 100


class Miss(NamedTuple):
    """A head that could not be had. until: CLOCK_MONOTONIC seconds before which it is not tried again.

    id: of the row at the head, if another one in its place may be tried at once; None: whatever is there.
    """

    times: int
    until: float
    id: int | None


class Full(NamedTuple):
    """A limit that leaves no room. room: 0, or less if it was lowered."""

    limit: int
    room: int


class Waiting:
    """The heads of all queues, in the order in which to claim them."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._heads: list[Head] = []
        """What the last look found, best first."""
        self._foreign: dict[tuple[int, str], str] = {}
        self._limits: dict[int, int] = {}
        self._full: dict[int, Full] = {}
        """Limited types, by index, that had no room when last counted."""
        self._freed: set[int] = set()
        """Limited types, by index, that have got room since the last count was sent."""
        self._freed_before: set[int] = set()
        """Those that had when the look was sent that is under way, or that a claim has not counted."""
        self._claimed_at: dict[int, float] = {}
        """When each type last got something: at equal priority types take turns, and the queues of one go by run_at."""
        self._missed: dict[tuple[int, str], Miss] = {}
        """Heads that could not be had, being locked or set aside: they must not keep the rest from being claimed."""
        self._queues: dict[int, tuple[str, int | None]] = {}
        """Queue and limit of each table's best row when last seen: what to claim first when its doorbell rings."""

    def looking(self) -> None:
        """A look goes out; what is freed from now on, it may not see."""
        self._freed_before |= self._freed
        self._freed = set()

    def seen(self, view: View) -> bool:
        """Takes in what a look has found. Whether there is something new in queues that are not this node's."""
        self._freed |= self._freed_before & view.uncounted
        self._freed_before = set()
        self._limits = view.limits
        self._full = {
            **{index: full for index, full in self._full.items() if index in view.uncounted},
            **{
                head.job_type.index: Full(head.limit, head.room)
                for head in view.heads
                if head.limit is not None and head.room is not None and head.room <= 0
            },
        }
        self._heads = sorted(
            map(self._with_room, view.heads),
            key=lambda head: (head.priority, self._claimed_at.get(head.job_type.index, 0.0), head.run_at),
        )
        there = {(head.job_type.index, head.queue): head.id for head in self._candidates()}
        self._missed = {
            key: miss for key, miss in self._missed.items() if key in there and miss.id in {None, there[key]}
        }
        for head in reversed(self._heads):
            self._queues[head.job_type.oid] = head.queue, head.limit
        news = view.foreign.items() - self._foreign.items()
        self._foreign = view.foreign
        return bool(news)

    def taking(self, job_type: JobType) -> None:
        """A claim goes out that finds out what its limit has left; what is freed from now on, it may not see."""
        self._freed.discard(job_type.index)

    def counted(self, head: Head, *, more: bool) -> None:
        """A claim knows what its limit has left. more: room."""
        index = head.job_type.index
        if more:
            self._full.pop(index, None)
        elif head.limit is not None:
            self._full.setdefault(index, Full(head.limit, 0))

    def not_counted(self, head: Head) -> None:
        """A claim has not found out what its limit has left. Unless the next look does, another claim must."""
        if head.limit is not None:
            self._freed_before.add(head.job_type.index)

    def _with_room(self, head: Head) -> Head:
        """Where nobody has counted, what was full still is. A limit that has changed is for the next count."""
        full = self._full.get(head.job_type.index)
        if full is None or head.limit is None:
            return head
        return head._replace(room=full.room if full.limit == head.limit else -1)

    def is_limited(self, job_type: JobType) -> bool:
        """It had a limit, which is the type's, when last looked at."""
        return job_type.index in self._limits

    def reached_limit(self, job_type: JobType) -> int | None:
        """Its limit, if that was reached when last looked at, rows waited, and no room is known to have come since; else None."""
        if job_type.index in self._freed:
            return None
        return next((head.limit for head in self._heads if head.job_type is job_type and head.room == 0), None)

    def with_room(self) -> set[int]:
        """Types, by index, of which rows wait that no limit keeps back."""
        return {head.job_type.index for head in self._candidates() if self._may_have_room(head)}

    def freed(self, job_type: JobType) -> None:
        """Its limit has room, whatever the last look found; rows of foreign queues are news again."""
        self._freed.add(job_type.index)
        self._foreign = {key: version for key, version in self._foreign.items() if key[0] != job_type.index}

    def takable(self, swappable: Callable[[JobType], bool]) -> list[Head]:
        """What may be claimed, best first, but for what could not be had just now. swappable: jobs of a type have ended that still
        count as running."""
        now = time.monotonic()
        return [
            head
            for head in self._candidates()
            if (self._may_have_room(head) or swappable(head.job_type)) and not self._is_missed(head, now)
        ]

    def rung(self, tables: Iterable[int]) -> list[Head]:
        """Nothing was known to wait; tables that rang, or where a row is due, have something now, likely where they last had."""
        types = {job_type.oid: job_type for job_type in self._looker.present}
        return [
            Head(types[table], queue, LOWEST_PRIORITY, None, None, limit, None if limit is None else 1)
            for table in tables
            if table in types and table in self._queues
            for queue, limit in [self._queues[table]]
        ]

    def missed(self, head: Head, row: int | None) -> None:
        """It could not be had. Tried later each time, jittered, so that nodes which compete for a limit do not stay in step.

        row: see Miss.id.
        """
        key = head.job_type.index, head.queue
        times = min(self._missed[key].times + 1, 7) if key in self._missed else 1
        pause = RETRY_INTERVAL * 2.0 ** (times - 1) * random.uniform(0.5, 1)
        self._missed[key] = Miss(times, time.monotonic() + pause, row)

    def claimed(self, head: Head) -> None:
        """Something of it was had."""
        self._missed.pop((head.job_type.index, head.queue), None)
        self._claimed_at[head.job_type.index] = time.monotonic()

    def retries(self) -> list[float]:
        """In how many seconds heads that have room, but could not be had, are to be tried again."""
        now = time.monotonic()
        return [
            self._missed[head.job_type.index, head.queue].until - now
            for head in self._candidates()
            if self._may_have_room(head) and self._is_missed(head, now)
        ]

    def _candidates(self) -> list[Head]:
        """What the last look found, best first, behind what is parked and may have room."""
        found = {(head.job_type.index, head.queue) for head in self._heads}
        return [
            Head(job_type, queue, LOWEST_PRIORITY, None, None, None, None)
            for job_type in self._looker.present
            for index, queue in self._looker.parked.waiting()
            if index == job_type.index and (index, queue) not in found
        ] + self._heads

    def _may_have_room(self, head: Head) -> bool:
        return head.has_room or head.job_type.index in self._freed

    def _is_missed(self, head: Head, now: float) -> bool:
        miss = self._missed.get((head.job_type.index, head.queue))
        return miss is not None and now < miss.until
