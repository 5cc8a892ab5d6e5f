"""Sweeps cluster.failures: rows whose job is gone go too, whoever has deleted it.

Finishing and deleting jobs costs nothing for it. The node that has been there longest walks along the rows, a window at a time.
Shares the finish session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection

from cluster import statements
from cluster.coordinator.causes import WHY_HELD, brief, cause_of
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.refusal import is_lost
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold, Troubles

WINDOW = 1000
"""Rows looked at in one step."""
PAUSE, REST = 0.25, 300.0
"""Seconds between two steps, and between two walks."""
_START = (-(2**63), "-infinity", 0)


class _Table(NamedTuple):
    """That has rows. schema None: it was dropped."""

    oid: int
    schema: str | None
    name: str | None


class FailureSweeper:
    """`tick` is one step. lease: the node's current one, None: none."""

    def __init__(self, session: Session, troubles: Troubles, lease: Callable[[], Lease | None]) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._lease = lease
        self._hold = Hold(troubles, "cluster.failures")
        self._left: list[_Table] = []
        """Of this walk, the one under way first."""
        self._reached: tuple[Any, ...] = _START
        """The last row seen of that one: job_id, at, attempt."""

    async def tick(self) -> float:
        """Returns the seconds until the next step, or the next walk."""
        lease = self._lease()
        if lease is None:
            return PAUSE
        async with self._session.use() as connection:
            try:
                if not self._left and not await self._begins(connection, lease):
                    return REST
                if await self._step(connection, self._left[0]):
                    self._next_table()
            except psycopg.Error as error:  # another walk tries it again
                if is_lost(connection, error):
                    raise
                self._hold.begin(WHY_HELD.get(cause_of(error), "table_refuses_pruning"), brief(error))
                self._next_table()
            else:
                self._hold.end()
        return PAUSE if self._left else REST

    async def _begins(self, connection: AsyncConnection[Any], lease: Lease) -> bool:
        """It is this node's turn, and there are rows at all."""
        cursor = await connection.execute(statements.statement("is_oldest_node"), {"node": lease.node})
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return False
        rows = await (await connection.execute(statements.statement("list_failed_tables"))).fetchall()
        self._left = [_Table(*row) for row in rows]
        return bool(self._left)

    async def _step(self, connection: AsyncConnection[Any], table: _Table) -> bool:
        """Whether it was the last one of this table."""
        values = {"table": table.oid, "window": WINDOW}
        if table.schema is None or table.name is None:
            cursor = await connection.execute(statements.statement("sweep_failures_of_dropped"), values)
            return cursor.rowcount < WINDOW
        statement = statements.for_table("sweep_failures", (table.schema, table.name))
        cursor = await connection.execute(
            statement, values | dict(zip(("id", "at", "attempt"), self._reached, strict=True))
        )
        reached = await cursor.fetchone()
        self._reached = reached or _START
        return reached is None

    def _next_table(self) -> None:
        self._left, self._reached = self._left[1:], _START
