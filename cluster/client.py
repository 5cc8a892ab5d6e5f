"""Enqueueing without a connection of one's own: clients have a pool, and commit what they enqueue."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from itertools import chain
from typing import Self, TypeVar

from psycopg import AsyncConnection, Connection
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from cluster.configuration import default_database_url
from cluster.enqueueing import check_job, described
from cluster.errors import EnqueueError
from cluster.job import Job

JobT = TypeVar("JobT", bound=Job)


class Client:
    """A pool of connections that commits what it enqueues; safe to share between threads.

    Opened by `with`, or by its first use. Works behind PgBouncer in transaction mode.
    """

    def __init__(self, database_url: str | None = None, *, min_size: int = 1, max_size: int = 4) -> None:
        """database_url: None takes that of `cluster.configure`, then that of the environment."""
        self._pool = ConnectionPool(
            _url(database_url),
            min_size=min_size,
            max_size=max_size,
            open=False,
            check=ConnectionPool.check_connection,
            kwargs=_CONNECTION_OPTIONS,
        )
        # A client of a module lives until the interpreter ends, which would wait for the pool's threads.
        self._close = weakref.finalize(self, self._pool.close)

    def __enter__(self) -> Self:
        self._pool.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections. A closed client can't be used again."""
        self._close()

    def enqueue(
        self,
        job: JobT,
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> JobT:
        """Inserts the job and commits; returns a copy that knows its id."""
        check_job(job, "enqueue")
        with self._take() as connection:
            return job.perform_later(connection, delay=delay, run_at=run_at, queue=queue, priority=priority)

    def enqueue_many(
        self,
        jobs: Iterable[Job],
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> int:
        """Inserts the jobs, all of the class of the first one, and commits: all of them or none. Returns how many."""
        job_class, jobs = _class_of_first(jobs)
        if job_class is None:
            return 0
        with self._take() as connection:
            return job_class.perform_many(connection, jobs, delay=delay, run_at=run_at, queue=queue, priority=priority)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in a transaction that ends with the block: committed, or rolled back by an error."""
        with self._take() as connection, connection.transaction():
            yield connection

    @contextmanager
    def _take(self) -> Iterator[Connection]:
        self._pool.open()
        with self._pool.connection() as connection:
            yield connection


class AsyncClient:
    """As Client, for async callers. Opened by `async with`, or by its first use."""

    def __init__(self, database_url: str | None = None, *, min_size: int = 1, max_size: int = 4) -> None:
        """database_url: None takes that of `cluster.configure`, then that of the environment."""
        self._pool = AsyncConnectionPool(
            _url(database_url),
            min_size=min_size,
            max_size=max_size,
            open=False,
            check=AsyncConnectionPool.check_connection,
            kwargs=_CONNECTION_OPTIONS,
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections. A closed client can't be used again."""
        await self._pool.close()

    async def enqueue(
        self,
        job: JobT,
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> JobT:
        """Inserts the job and commits; returns a copy that knows its id."""
        check_job(job, "enqueue")
        async with self._take() as connection:
            return await job.perform_later(connection, delay=delay, run_at=run_at, queue=queue, priority=priority)

    async def enqueue_many(
        self,
        jobs: Iterable[Job],
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> int:
        """Inserts the jobs, all of the class of the first one, and commits: all of them or none. Returns how many."""
        job_class, jobs = _class_of_first(jobs)
        if job_class is None:
            return 0
        async with self._take() as connection:
            return await job_class.perform_many(
                connection, jobs, delay=delay, run_at=run_at, queue=queue, priority=priority
            )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that ends with the block: committed, or rolled back by an error."""
        async with self._take() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _take(self) -> AsyncIterator[AsyncConnection]:
        await self._pool.open()
        async with self._pool.connection() as connection:
            yield connection


# A job is one statement, so autocommit saves the round trips of BEGIN and COMMIT; behind PgBouncer a statement
# prepared on one server connection would be missing on the next.
_CONNECTION_OPTIONS = {"autocommit": True, "prepare_threshold": None}


def _url(database_url: str | None) -> str:
    return default_database_url() if database_url is None else database_url


def _class_of_first(jobs: Iterable[Job]) -> tuple[type[Job] | None, Iterable[Job]]:
    """The class of the first job, and all the jobs again. None: there are none."""
    if not isinstance(jobs, Iterable):
        raise EnqueueError(f"enqueue_many takes an iterable of jobs, not {described(jobs)}")
    rest = iter(jobs)
    for first in rest:
        check_job(first, "enqueue_many")
        return type(first), jobs if isinstance(jobs, list | tuple) else chain([first], rest)
    return None, ()
