"""asyncpg's connections, and those that its pool lends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import EnqueueError
from cluster.sessions import Row, numbered


class Asyncpg:
    """A Connection or a PoolConnectionProxy. Any: the library need not be installed."""

    placeholder = "$1"

    def __init__(self, connection: Any) -> None:
        if connection.is_closed():
            raise EnqueueError("the connection is closed: pass an open one")
        self._connection = connection

    async def row(self, statement: str, values: Sequence[Any]) -> Row:
        row = await self._connection.fetchrow(numbered(statement), *values)
        return None if row is None else tuple(row)

    def in_transaction(self) -> bool:
        return bool(self._connection.is_in_transaction())

    async def look(self, statement: str, values: Sequence[Any]) -> Row:
        return await self.row(statement, values)

    def database(self) -> str | None:
        # asyncpg has no public name for it.
        return getattr(getattr(self._connection, "_params", None), "database", None)
