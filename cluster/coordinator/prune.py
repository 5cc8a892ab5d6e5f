"""Deletes finished jobs that are older than their type keeps them, in small batches, and node rows that ended a day ago.

Walks every table along its primary key, a window at a time, so that no index is needed that each finish would have to write.
Rows that another table still references are skipped. Any number of nodes may prune: a row that is gone is gone.
"""

from __future__ import annotations

import time
from datetime import timedelta

import psycopg
from psycopg import errors

from cluster import events, statements
from cluster.coordinator.job_types import JobType
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.session import Session

WINDOW = 5000
"""Rows looked at in one step."""
PAUSE = 0.2
"""Seconds between two windows of one walk: pruning is in no hurry."""


class Pruner:
    """`tick` is one window of one table's walk. Shares the finish connection, between batches."""

    def __init__(self, session: Session, types: list[JobType], interval: float) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._types = types
        self._interval = interval
        self._walks: dict[int, int] = {}
        """Table by type index, and the id that its walk has reached."""
        self._next_walk = 0.0

    async def tick(self) -> float | None:
        """Returns the seconds until the next window, or the next walk."""
        if not self._walks:
            if time.monotonic() < self._next_walk:
                return self._next_walk - time.monotonic()
            self._next_walk = time.monotonic() + self._interval
            self._walks = {job_type.index: -(2**63) for job_type in self._types if _keeps_for_a_time(job_type)}
            async with self._session.use() as connection:
                await connection.execute(statements.statement("prune_nodes"))
        for index, after in list(self._walks.items()):
            reached = await self._window(self._types[index], after)
            if reached is None:
                del self._walks[index]
            else:
                self._walks[index] = reached
        return PAUSE if self._walks else self._interval

    async def _window(self, job_type: JobType, after: int) -> int | None:
        """Prunes one window. Returns how far it got; None: the end of the table."""
        if not job_type.oid:
            return None
        retention = {
            "retention": job_type.job_class.retention,
            "retention_failed": job_type.job_class.retention_failed,
        }
        try:
            async with self._session.use() as connection:
                cursor = await connection.execute(
                    job_type.statement("find_expired_jobs"), {**retention, "after": after, "window": WINDOW}
                )
                row = await cursor.fetchone()
        except (errors.UndefinedTable, errors.UndefinedColumn):
            return None
        reached: int | None
        expired: list[int]
        reached, expired = row if row is not None else (None, [])
        if expired:
            gone = await self._delete(job_type, expired, retention)
            if gone:
                events.pruned(job_type.name, gone)
        return reached

    async def _delete(self, job_type: JobType, ids: list[int], retention: dict[str, timedelta | None]) -> int:
        """Deletes what can be deleted; a batch that is refused is halved down to the row."""
        try:
            async with self._session.use() as connection:
                cursor = await connection.execute(job_type.statement("prune_jobs"), {**retention, "id": ids})
                return cursor.rowcount
        except psycopg.Error as error:
            if len(ids) == 1:
                events.prune_skipped(job_type.name, ids, error)
                return 0
        half = len(ids) // 2
        return await self._delete(job_type, ids[:half], retention) + await self._delete(job_type, ids[half:], retention)


def _keeps_for_a_time(job_type: JobType) -> bool:
    return job_type.job_class.retention is not None or job_type.job_class.retention_failed is not None
