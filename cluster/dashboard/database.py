"""Connections of the dashboard: few, each transaction bounded in time, so that no page can hold up a node.

The pool opens with the first request, in its event loop: an application that is mounted has no start of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

CONNECTIONS = 4
SECONDS = 3
"""That a statement may take."""
SECONDS_TO_COUNT = 20
"""All jobs that match, before something is done to them: it may take the whole table."""
SECONDS_TO_CONNECT = 4.0


class Connection(AsyncConnection[dict[str, Any]]):
    """shown: of all job tables, those that this dashboard is for."""

    shown: Callable[[list[Any]], list[Any]]


_READ = f"""
BEGIN READ ONLY; SET LOCAL statement_timeout = '{SECONDS}s'; SET LOCAL enable_seqscan = off; SET LOCAL jit = off;
SET LOCAL TimeZone = 'UTC'
"""
_COUNT = f"BEGIN READ ONLY; SET LOCAL statement_timeout = '{SECONDS_TO_COUNT}s'; SET LOCAL TimeZone = 'UTC'"
_WRITE = f"BEGIN; SET LOCAL statement_timeout = '{SECONDS}s'; SET LOCAL lock_timeout = '1s'"


class Database:
    """url: read anew at every connect, since passwords change. shown: as of its connections."""

    def __init__(self, url: Callable[[], str], shown: Callable[[list[Any]], list[Any]] = list) -> None:
        self.url = url
        self._shown = shown
        self._pool: AsyncConnectionPool[Connection] | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A transaction that can only read. Indexes are used whatever the statistics say, as nodes do it."""
        async with self._transaction(_READ) as connection:
            yield connection

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[Connection]:
        """A transaction that can only read, and may take long."""
        async with self._transaction(_COUNT) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """A transaction: all of it, or nothing."""
        async with self._transaction(_WRITE) as connection:
            yield connection

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()

    @asynccontextmanager
    async def _transaction(self, begin: str) -> AsyncIterator[Connection]:
        pool = await self._opened()
        async with pool.connection(timeout=SECONDS_TO_CONNECT) as connection:
            connection.shown = self._shown
            await connection.execute(begin.encode())
            try:
                yield connection
            except BaseException:
                if not connection.broken:
                    await connection.rollback()
                raise
            await connection.commit()

    async def _opened(self) -> AsyncConnectionPool[Connection]:
        if self._pool is None:
            self._pool = AsyncConnectionPool(
                self.url,
                connection_class=Connection,
                kwargs={
                    "autocommit": True, "row_factory": dict_row, "prepare_threshold": None, "client_encoding": "utf-8",
                    "application_name": "cluster dashboard", "connect_timeout": 3,
                },
                min_size=0, max_size=CONNECTIONS, open=False, name="dashboard", max_idle=60, reconnect_timeout=5,
                check=AsyncConnectionPool.check_connection,
            )  # fmt: skip
            await self._pool.open()
        return self._pool
