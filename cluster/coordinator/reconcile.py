"""With every heartbeat: the rows that run under this node's id, held against what the node knows.

A claim or finish whose answer was lost may have committed, even later than one looks. Rows that nobody here knows go back;
jobs whose row is gone are stopped; so are those whose cancellation was asked for while no notification could arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from psycopg import errors

from cluster import events
from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pool import Pool
from cluster.coordinator.process import Key
from cluster.coordinator.session import Session

SHARE = 0.1
"""Of the time, that comparisons may take."""
UNKNOWN_AFTER = 15.0
"""Seconds since its claim after which a row that nobody here knows is handed back: longer than any round trip may take.

At once, when the claims' sessions before this one are known to have ended: then no claim can be under way.
"""


class Reconciler:
    """`tick` is one comparison. unwritten: keys whose outcome the finisher still has; lease: the current one, None: none."""

    def __init__(
        self,
        session: Session,
        types: list[JobType],
        pool: Pool,
        lease: Callable[[], Lease | None],
        unwritten: Callable[[], set[Key]],
        interval: float,
    ) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._types = types
        self._pool = pool
        self._lease = lease
        self._unwritten = unwritten
        self._interval = interval
        self._took = 0.0
        """Seconds of the queries of one comparison: a held snapshot keeps the index entries of all that this node has run."""

    async def tick(self) -> float | None:
        """Returns the seconds until the next comparison."""
        lease, self._took = self._lease(), 0.0
        if lease is not None:
            for job_type in self._types:
                await self._compare(job_type, lease)
        return max(self._interval, self._took / SHARE)

    async def _compare(self, job_type: JobType, lease: Lease) -> None:
        before, rows = await self._before_and_rows(job_type, lease)
        known = before | self._known(job_type, lease)
        unknown_after = 0.0 if self._session.alone else UNKNOWN_AFTER
        held = self._pool.held(lease)
        gone = {key for key in held if key in before and key[1] not in rows and key[0] == job_type.index}
        if gone:
            events.claims_gone(job_type.name, [job_id for _, job_id in gone])
            self._pool.stop_lost(gone)
        for job_id, _, age, cancelled in rows.values():
            if cancelled and self._pool.cancel(job_type, job_id):
                events.cancel_requested(job_type.name, job_id)
            if age > unknown_after and (job_type.index, job_id) not in known:
                await self._give_back(job_type, lease, rows[job_id])

    async def _before_and_rows(self, job_type: JobType, lease: Lease) -> tuple[set[Key], dict[int, tuple[Any, ...]]]:
        """What the node knew just before the query, and the rows. In between nothing is claimed: that takes the same session."""
        if not job_type.oid:
            return self._known(job_type, lease), {}  # a dropped table has none
        before = set[Key]()
        try:
            async with self._session.use() as connection:
                before, began = self._known(job_type, lease), time.monotonic()
                cursor = await connection.execute(job_type.statement("list_claims"), {"node": lease.node}, binary=True)
                self._took += time.monotonic() - began
                return before, {row[0]: row for row in await cursor.fetchall()}
        except (errors.UndefinedTable, errors.UndefinedColumn):
            return before, {}

    def _known(self, job_type: JobType, lease: Lease) -> set[Key]:
        return {key for key in set(self._pool.held(lease)) | self._unwritten() if key[0] == job_type.index}

    async def _give_back(self, job_type: JobType, lease: Lease, row: tuple[Any, ...]) -> None:
        """A claim whose answer never came: nobody performs it."""
        async with self._session.use() as connection:
            cursor = await connection.execute(
                job_type.statement("release_claim"), {"id": row[0], "locked_at": row[1], "node": lease.node}
            )
        if cursor.rowcount:
            events.claim_given_back(job_type.name, row[0])
