"""Connections of the dashboard: few, each transaction bounded in time, so that no page can hold up a node.

The pool opens with the first request, in its event loop, and closes with that loop at the latest: an application that is mounted
has neither a start nor an end of its own.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakSet

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
        self._keeper: Task[None] | None = None
        """Of the pool: lives as long as the pool's event loop."""

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
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

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
        if self._pool is None or self._keeper is None or self._keeper.done():
            made: WeakSet[Connection] = WeakSet()
            self._pool = _new_pool(self.url, made)
            await self._pool.open()
            self._keeper = asyncio.create_task(_keep(self._pool, made))
        return self._pool


def _new_pool(url: Callable[[], str], made: WeakSet[Connection]) -> AsyncConnectionPool[Connection]:
    """made: every connection of it."""

    async def note(connection: Connection) -> None:
        made.add(connection)

    return AsyncConnectionPool(
        url,
        connection_class=Connection,
        kwargs={
            "autocommit": True, "row_factory": dict_row, "prepare_threshold": None, "client_encoding": "utf-8",
            "application_name": "cluster dashboard", "connect_timeout": 3,
        },
        configure=note, min_size=0, max_size=CONNECTIONS, open=False, name="dashboard", max_idle=60, reconnect_timeout=5,
        check=AsyncConnectionPool.check_connection,
    )  # fmt: skip


async def _keep(pool: AsyncConnectionPool[Connection], made: WeakSet[Connection]) -> None:
    """Until it is cancelled: by `close`, or with all that runs when the loop ends.

    So are the pool's own workers then, and what it holds is closed here.
    """
    try:
        await asyncio.Event().wait()
    finally:
        try:
            await pool.close()
        finally:
            for connection in list(made):
                await connection.close()
