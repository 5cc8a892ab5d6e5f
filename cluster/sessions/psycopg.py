"""psycopg's own connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from cluster.errors import EnqueueError
from cluster.sessions import Row


class Psycopg:
    """A Connection."""

    placeholder = "%s"

    def __init__(self, connection: Connection[Any]) -> None:
        _check_open(connection)
        self.connection = connection

    @property
    def in_pipeline(self) -> bool:
        """Where COPY can't be used."""
        return self.connection.info.pipeline_status != PipelineStatus.OFF

    def row(self, statement: str, values: Sequence[Any]) -> Row:
        # A cursor of ours: the connection's own may take other placeholders or return other rows.
        with Cursor(self.connection, row_factory=tuple_row) as cursor:
            return cursor.execute(statement, values).fetchone()

    def in_transaction(self) -> bool:
        return self.connection.info.transaction_status != TransactionStatus.IDLE

    def look(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return self.row(statement, values)
        finally:
            self.connection.rollback()

    def database(self) -> str | None:
        return self.connection.info.dbname


class AsyncPsycopg:
    """An AsyncConnection."""

    placeholder = "%s"

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        _check_open(connection)
        self.connection = connection

    @property
    def in_pipeline(self) -> bool:
        """Where COPY can't be used."""
        return self.connection.info.pipeline_status != PipelineStatus.OFF

    async def row(self, statement: str, values: Sequence[Any]) -> Row:
        async with AsyncCursor(self.connection, row_factory=tuple_row) as cursor:
            await cursor.execute(statement, values)
            return await cursor.fetchone()

    def in_transaction(self) -> bool:
        return self.connection.info.transaction_status != TransactionStatus.IDLE

    async def look(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return await self.row(statement, values)
        finally:
            await self.connection.rollback()

    def database(self) -> str | None:
        return self.connection.info.dbname


def _check_open(connection: Connection[Any] | AsyncConnection[Any]) -> None:
    if connection.closed:
        raise EnqueueError("the connection is closed: pass an open one")
