"""Deletes finished jobs that are older than their type keeps them, in small batches, and node rows that ended a day ago.

Walks every table along its primary key, a window at a time, so that no index is needed that each finish would have to write. A walk
begins only when something can have expired, and each step is taken by one node: `cluster.prune_walks` knows where it stands.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection

from cluster import events, statements
from cluster.coordinator import pipeline
from cluster.coordinator.arrays import BigIntegers, Instant
from cluster.coordinator.backlog import WHY_HELD
from cluster.coordinator.causes import brief, cause_of
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.refusal import is_lost, search
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold, Troubles

WINDOW = 2000
"""Rows looked at in one step."""
PAUSE = 0.2
"""Seconds between two steps: pruning is in no hurry."""


class _Step(NamedTuple):
    """Of a walk. reached: the id up to which it got, None: it begins."""

    table: int
    job_type: str
    schema: str
    name: str
    retention: timedelta | None
    retention_failed: timedelta | None
    reached: int | None

    def statement(self, name: str) -> bytes:
        return statements.for_table(name, (self.schema, self.name))


class Pruner:
    """`tick` is one step of one table's walk. Shares the finish connection, between batches.

    interval: seconds between looks for walks that are due.
    """

    def __init__(self, session: Session, troubles: Troubles, interval: float) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._troubles = troubles
        self._interval = interval
        self._holds: dict[int, Hold] = {}
        """Tables, by oid, that can't be pruned."""
        self._is_walking = False

    async def tick(self) -> float | None:
        """Returns the seconds until the next step, or the next look for one."""
        async with self._session.use() as connection:
            if not self._is_walking:
                await connection.execute(statements.statement("prune_nodes"))
                await connection.execute(statements.statement("plan_pruning"))
            leave = [table for table, hold in self._holds.items() if not hold.is_over]
            cursor = await connection.execute(statements.statement("take_prune_step"), {"leave": leave})
            row = await cursor.fetchone()
            if row is not None:
                await self._take_step(connection, _Step(*row))
        self._is_walking = row is not None
        return PAUSE if self._is_walking else self._interval

    async def _take_step(self, connection: AsyncConnection[Any], step: _Step) -> None:
        hold = self._holds.setdefault(step.table, Hold(self._troubles, step.job_type))
        try:
            reached, oldest = await self._prune(connection, step)
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise
            hold.begin(WHY_HELD.get(cause_of(error), "prune_refused"), brief(error))
            return
        hold.end()
        end = {"table": step.table, "reached": reached, "oldest": oldest}
        await pipeline.ask(connection, [Command(statements.text("end_prune_step").encode(), end)])

    async def _prune(self, connection: AsyncConnection[Any], step: _Step) -> tuple[int | None, Instant | None]:
        """One window. Returns how far it got (None: the end), and when the oldest row that will expire has finished."""
        keeps = {"retention": step.retention, "retention_failed": step.retention_failed}
        after = -(2**63) if step.reached is None else step.reached
        command = Command(step.statement("find_expired_jobs"), {**keeps, "after": after, "window": WINDOW})
        (answer,) = await pipeline.ask(connection, [command])
        ((reached, expired, oldest),) = pipeline.rows(pipeline.adapter_of(connection), answer)

        async def delete(ids: list[int]) -> int:
            prune = Command(step.statement("prune_jobs"), {**keeps, "id": BigIntegers(ids)})
            (result,) = await pipeline.ask(connection, [prune])
            gone = result.command_tuples or 0
            if gone:
                events.pruned(step.job_type, gone)
            return gone

        found = await search(connection, expired, delete)
        if found.fault is not None:
            raise found.fault
        if found.refused:
            events.prune_skipped(step.job_type, [job_id for job_id, _ in found.refused], found.refused[0][1])
        return reached, oldest
