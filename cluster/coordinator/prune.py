"""Deletes finished jobs that are older than their type keeps them, in small batches, node rows that ended a day ago, old
occurrences of schedules, and what people did more than a year ago; deactivates schedules whose class is gone.

Walks every table along its primary key, a window at a time, so that no index is needed that each finish would have to write. A walk
begins only when something can have expired, and each step is taken by one node: `cluster.prune_walks` knows where it stands.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection

from cluster import events, statements
from cluster.coordinator import pipeline
from cluster.coordinator.arrays import BigIntegers
from cluster.coordinator.causes import WHY_HELD, Cause, brief, cause_of
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.refusal import Found, is_lost, search
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold, Pace, RowsAside, Troubles

WINDOW = 2000
"""Rows looked at in one step."""
PAUSE = 0.25
"""Seconds between two steps: pruning is in no hurry. A little more than the database waits before the next is due."""
FIRST_PAUSE_REFUSED, LONGEST_PAUSE_REFUSED = 60.0, 86_400.0
"""Seconds until a row that can't be deleted is tried again."""


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


class _Table:
    """One job table that is pruned. step: the last one that was taken."""

    def __init__(self, troubles: Troubles, step: _Step) -> None:
        self.step = step
        self.hold = Hold(troubles, step.job_type)
        """It can't be pruned at all."""
        self.pace = Pace(WINDOW)
        self.aside = RowsAside(troubles, step.job_type, "prune_refused")
        """Rows that can't be deleted: another table references them, or a trigger says no."""


class Pruner:
    """`tick` is one step of one table's walk. Shares the finish connection, between batches.

    interval: seconds between looks for walks that are due.
    """

    def __init__(self, session: Session, troubles: Troubles, interval: float) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._troubles = troubles
        self._interval = interval
        self._tables: dict[int, _Table] = {}
        """By oid."""
        self._is_walking = False

    async def tick(self) -> float | None:
        """Returns the seconds until the next step, or the next look for one."""
        async with self._session.use() as connection:
            if not self._is_walking:
                await connection.execute(statements.statement("prune_nodes"))
                await connection.execute(statements.statement("prune_schedule_runs"))
                await connection.execute(statements.statement("prune_audit"))
                await self._deactivate_unserved(connection)
                await connection.execute(statements.statement("plan_pruning"))
                for table in self._tables.values():  # what could not be deleted, whether a walk comes by or not
                    if table.hold.is_over and (due := table.aside.due()):
                        await self._guarded(connection, table, self._delete(connection, table, due[: table.pace.rows]))
            leave = [oid for oid, table in self._tables.items() if not table.hold.is_over]
            cursor = await connection.execute(statements.statement("take_prune_step"), {"leave": leave})
            row = await cursor.fetchone()
            if row is not None:
                step = _Step(*row)
                table = self._tables.setdefault(step.table, _Table(self._troubles, step))
                table.step = step
                await self._guarded(connection, table, self._take_step(connection, table))
        self._is_walking = row is not None
        return PAUSE if self._is_walking else self._interval

    async def _deactivate_unserved(self, connection: AsyncConnection[Any]) -> None:
        cursor = await connection.execute(statements.statement("deactivate_unserved"))
        for name, error in await cursor.fetchall():
            events.schedule_failed(name, error)

    async def _guarded(self, connection: AsyncConnection[Any], table: _Table, doing: Awaitable[object]) -> None:
        """What fails is tried again later: by another node, which may be luckier, or by this one once its hold is over."""
        try:
            await doing
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise
            if cause_of(error) is not Cause.SLOW or not table.pace.too_slow():
                table.hold.begin(WHY_HELD.get(cause_of(error), "table_refuses_pruning"), brief(error))
        else:
            table.hold.end()

    async def _take_step(self, connection: AsyncConnection[Any], table: _Table) -> None:
        """One window of a walk."""
        step = table.step
        keeps = {"retention": step.retention, "retention_failed": step.retention_failed}
        after = -(2**63) if step.reached is None else step.reached
        command = Command(step.statement("find_expired_jobs"), {**keeps, "after": after, "window": WINDOW})
        (answer,) = await pipeline.ask(connection, [command])
        ((reached, expired, expires_at),) = pipeline.rows(pipeline.adapter_of(connection), answer)
        aside = set(table.aside.ids())
        wanted = [job_id for job_id in expired if job_id not in aside]
        found = await self._delete(connection, table, wanted[: table.pace.rows])
        untried = [*found.untried, *wanted[table.pace.rows :]]
        if untried and not table.aside.is_full:
            reached = min(untried) - 1  # the search goes upwards: the next step goes on where it had to stop
        refused = bool(found.refused or aside.intersection(expired))
        end = {**keeps, "table": step.table, "reached": reached, "expires_at": expires_at, "refused": refused}
        await pipeline.ask(connection, [Command(statements.text("end_prune_step").encode(), end)])

    async def _delete(self, connection: AsyncConnection[Any], table: _Table, ids: list[int]) -> Found:
        """Those that can be, and may still be. psycopg.Error: the table refuses it as a whole."""
        step, gone = table.step, 0

        async def delete(ids: list[int]) -> int:
            nonlocal gone
            prune = Command(step.statement("prune_jobs"), {"table": step.table, "id": BigIntegers(ids)})
            (result,) = await pipeline.ask(connection, [prune])
            gone += result.command_tuples or 0
            table.aside.accepted(ids)
            return result.command_tuples or 0

        found = await search(connection, ids, delete)
        if gone:
            events.pruned(step.job_type, gone)
        if found.fault is not None:
            raise found.fault
        table.pace.worked()
        if found.refused and not table.aside:
            events.prune_skipped(step.job_type, [job_id for job_id, _ in found.refused], found.refused[0][1])
        for job_id, error in found.refused:
            table.aside.add(job_id, brief(error), FIRST_PAUSE_REFUSED, LONGEST_PAUSE_REFUSED)
        return found
