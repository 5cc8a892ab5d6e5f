"""Limits per key: what a claim of such a type must reach, and which keys may have room for rows that are parked.

A claim that meets a full key parks its rows. When a job ends on this node, its key goes to the next claim, which takes what is
parked; room that others leave is found by a sweep. Called by the claimer, on its connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from psycopg import AsyncConnection, errors

from cluster.coordinator.job_types import JobType

SWEEP_INTERVAL = 1.0
"""Seconds between sweeps: the most that room which nobody told of is left unused."""
SWEEP_BATCH = 500
MOST_KEYS = 500
"""Keys that one claim looks after."""
LONGEST_REACH = 4000
"""Open rows that one claim may examine: those of full keys are parked, so the next claim need not."""


class ParkedKey(NamedTuple):
    """A key, as text, that may have parked rows in this queue."""

    queue: str
    key: str


class _Sweep:
    """Where the sweep of one type stands. after: the pair seen last; None: from the start."""

    def __init__(self) -> None:
        self.after: ParkedKey | None = None
        self.at = 0.0


class ParkedKeys:
    """Keys to look after, by type and queue. queues: those of this node; None: all."""

    def __init__(self, queues: Iterable[str] | None) -> None:
        self._queues = None if queues is None else frozenset(queues)
        self._keys: dict[tuple[int, str], set[str]] = {}
        self._sweeps: dict[int, _Sweep] = {}
        self._reach: dict[int, int] = {}

    def add(self, job_type: JobType, keys: Iterable[ParkedKey]) -> None:
        """These keys may have room."""
        for queue, key in keys:
            self._keys.setdefault((job_type.index, queue), set()).add(key)

    def waiting(self) -> list[tuple[int, str]]:
        """Types, by index, and queues that have keys to look after."""
        return list(self._keys)

    def some(self, job_type: JobType, queue: str) -> list[str]:
        """Keys for one claim."""
        keys = self._keys.get((job_type.index, queue))
        return [] if keys is None else sorted(keys)[:MOST_KEYS]

    def looked_after(self, job_type: JobType, queue: str, keys: list[str]) -> None:
        """A claim had these keys, and the lock."""
        left = self._keys.pop((job_type.index, queue), set()) - set(keys)
        if left:
            self._keys[job_type.index, queue] = left

    def reach(self, job_type: JobType, demand: int) -> int:
        """Open rows that a claim is to examine."""
        return max(demand, self._reach.get(job_type.index, 0))

    def claimed(self, job_type: JobType, demand: int, rows: int) -> None:
        """What came of a claim that had the lock: when full keys are in the way, the next one reaches further."""
        before = self._reach.pop(job_type.index, 0)
        if rows < demand:
            self._reach[job_type.index] = min(LONGEST_REACH, 4 * max(before, demand))

    def sweep_soon(self) -> None:
        """A limit or a pause has changed."""
        self._sweeps.clear()

    async def sweep(self, connection: AsyncConnection[Any], types: Iterable[JobType]) -> None:
        """Looks for parked rows whose key has room, where that is due."""
        for job_type in types:
            if job_type.key is not None:
                sweep = self._sweeps.setdefault(job_type.index, _Sweep())
                if time.monotonic() >= sweep.at:
                    await self._sweep(connection, job_type, sweep)

    async def _sweep(self, connection: AsyncConnection[Any], job_type: JobType, sweep: _Sweep) -> None:
        queue, after = sweep.after or (None, None)
        sweep.at = time.monotonic() + SWEEP_INTERVAL
        try:
            cursor = await connection.execute(
                job_type.statement("find_parked_keys"),
                {"table": job_type.oid, "key": job_type.job_class.concurrency_key, "queue": queue, "after": after,
                 "limit": SWEEP_BATCH},
            )  # fmt: skip
        except (errors.LockNotAvailable, errors.UndefinedTable, errors.UndefinedColumn):
            return  # the look that follows finds out why
        rows = await cursor.fetchall()
        free = [ParkedKey(queue, key) for queue, key, has_room in rows if has_room and self._serves(queue)]
        self.add(job_type, free)
        sweep.after = ParkedKey(*rows[-1][:2]) if len(rows) == SWEEP_BATCH else None
        if free and sweep.after is not None:
            sweep.at = 0.0

    def _serves(self, queue: str) -> bool:
        return self._queues is None or queue in self._queues
