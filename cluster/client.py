"""Enqueueing: one job by INSERT, many by COPY, on a connection of the caller or on the pool of a Client.

The functions write rows of job tables in the connection's current transaction and never commit; clients do.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from copy import copy
from datetime import datetime, timedelta
from functools import cache
from itertools import chain, islice, repeat
from operator import attrgetter
from types import TracebackType
from typing import Any, LiteralString, NamedTuple, Self, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, errors, sql
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from cluster import tracing
from cluster.backoff import LONGEST_DELAY
from cluster.columns import Column
from cluster.configuration import default_database_url
from cluster.errors import EnqueueError
from cluster.job import Job, definition
from cluster.tables import identifier

AnyConnection = Connection[Any] | AsyncConnection[Any]
JobT = TypeVar("JobT", bound=Job)


def enqueue(
    job: JobT,
    connection: AnyConnection,
    *,
    delay: timedelta | None = None,
    run_at: datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
) -> JobT | Awaitable[JobT]:
    """Inserts the job; returns a copy that knows its id, or an awaitable of it on an AsyncConnection.

    What is None is left to the column's default. What the database refuses comes as psycopg's error.
    """
    _check_job(job, "perform_later")
    given = _Given.checked(delay, run_at, queue, priority)
    if isinstance(_usable(connection), AsyncConnection):
        return _insert_async(cast("AsyncConnection[Any]", connection), job, given)
    return _insert(cast("Connection[Any]", connection), job, given)


def enqueue_many(
    job_class: type[JobT],
    connection: AnyConnection,
    jobs: Iterable[JobT],
    *,
    delay: timedelta | None = None,
    run_at: datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
) -> int | Awaitable[int]:
    """Inserts the jobs, all of this class, by COPY: all of them or none. Returns how many.

    jobs may be a generator, also one that reads from this connection: it is consumed some thousands at a time. A list is copied
    while its values are read, which is faster.
    """
    definition(job_class)
    if not isinstance(jobs, Iterable):
        raise EnqueueError(f"perform_many takes an iterable of {job_class.__name__}, not {_described(jobs)}")
    given = _Given.checked(delay, run_at, queue, priority)
    if not definition(job_class).columns and not any(given.columns):
        # COPY needs at least one column.
        given = given._replace(delay=timedelta(0))
    if isinstance(_usable(connection), AsyncConnection):
        return _copy_async(cast("AsyncConnection[Any]", connection), job_class, jobs, given)
    return _copy(cast("Connection[Any]", connection), job_class, jobs, given)


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
        _check_job(job, "enqueue")
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
        _check_job(job, "enqueue")
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
        raise EnqueueError(f"enqueue_many takes an iterable of jobs, not {_described(jobs)}")
    rest = iter(jobs)
    for first in rest:
        _check_job(first, "enqueue_many")
        return type(first), jobs if isinstance(jobs, list | tuple) else chain([first], rest)
    return None, ()


# --- one job ---


class _Given(NamedTuple):
    """What is decided for standard columns; None is left to their defaults. traceparent: of the caller's span."""

    traceparent: str | None
    queue: str | None
    priority: int | None
    run_at: datetime | None
    delay: timedelta | None

    @classmethod
    def checked(
        # Any: callers without a type checker give anything.
        cls,
        delay: Any,
        run_at: Any,
        queue: str | None,
        priority: int | None,
    ) -> Self:
        if delay is not None and run_at is not None:
            raise EnqueueError("give delay or run_at, not both")
        if delay is not None and (not isinstance(delay, timedelta) or delay < timedelta(0)):
            raise EnqueueError(f"delay is a timedelta of zero or more, not {delay!r}")
        if run_at is not None and not isinstance(run_at, datetime):
            raise EnqueueError(f"run_at is a datetime with a time zone, not {run_at!r}")
        if run_at is not None and run_at.utcoffset() is None:
            raise EnqueueError(f"run_at {run_at!s} has no time zone: add one, such as datetime(…, tzinfo=timezone.utc)")
        return cls(
            None, queue, priority, run_at, None if delay is None else min(delay, timedelta(seconds=LONGEST_DELAY))
        )

    @property
    def columns(self) -> tuple[str, ...]:
        names = (tracing.COLUMN, "queue", "priority", "run_at", "run_at")
        return tuple(name for name, value in zip(names, self, strict=True) if value is not None)


@cache
def _insert_statement(table: str, columns: tuple[str, ...], *, delayed: bool) -> LiteralString:
    """delayed: the last parameter is an interval from now, by the database's clock."""
    places = ["%s"] * len(columns)
    if delayed:
        places[-1] = "now() + %s"
    values = f"VALUES ({', '.join(places)})" if columns else "DEFAULT VALUES"
    into = identifier(table).as_string().replace("%", "%%") + _listed(columns)
    return f"INSERT INTO {into} {values} RETURNING id"


def _listed(columns: tuple[str, ...]) -> str:
    return f" ({', '.join(sql.Identifier(column).as_string() for column in columns)})" if columns else ""


def _insert(connection: Connection[Any], job: JobT, given: _Given) -> JobT:
    # A cursor of ours: the connection's own may take other placeholders or return other rows.
    with _Explained(type(job)) as explained, Cursor(connection, row_factory=tuple_row) as cursor:
        if _must_ask(type(job)):
            _note(type(job), cursor.execute(*_question(type(job))).fetchone())
        statement, explained.row = _insert_of(job, _traced(type(job), given))
        return _inserted(job, cursor.execute(statement, explained.row).fetchone())


async def _insert_async(connection: AsyncConnection[Any], job: JobT, given: _Given) -> JobT:
    with _Explained(type(job)) as explained:
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            if _must_ask(type(job)):
                await cursor.execute(*_question(type(job)))
                _note(type(job), await cursor.fetchone())
            statement, explained.row = _insert_of(job, _traced(type(job), given))
            await cursor.execute(statement, explained.row)
            return _inserted(job, await cursor.fetchone())


def _insert_of(job: Job, given: _Given) -> tuple[LiteralString, list[Any]]:
    """The statement and its parameters."""
    made = definition(type(job))
    values = [column.value(getattr(job, column.name)) for column in made.columns]
    values += [value for value in given if value is not None]
    statement = _insert_statement(made.table, (*made.column_names, *given.columns), delayed=given.delay is not None)
    return statement, values


def _inserted(job: JobT, row: tuple[Any, ...] | None) -> JobT:
    if row is None:
        raise EnqueueError(f"a trigger of table {definition(type(job)).table} discarded the row")
    known = copy(job)
    known.id = row[0]
    return known


# --- many jobs ---

# Text, not binary: the server reads each value as the type that its column really has, be it int2, citext or an enum.


def _copy(connection: Connection[Any], job_class: type[JobT], jobs: Iterable[JobT], given: _Given) -> int:
    count = 0
    together = connection.transaction() if connection.autocommit else nullcontext()
    with _Explained(job_class) as explained, together, Cursor(connection, row_factory=tuple_row) as cursor:
        if given.delay is not None:
            given = _at(given, cursor.execute(_LATER, [given.delay]).fetchone())
        if _must_ask(job_class):
            _note(job_class, cursor.execute(*_question(job_class)).fetchone())
        given = _traced(job_class, given)
        statement = _copy_statement(job_class, given.columns)
        for rows in _batches(job_class, jobs, given):
            with cursor.copy(statement) as copying:
                for explained.row in rows:
                    copying.write_row(explained.row)
            count += cursor.rowcount
    return count


async def _copy_async(
    connection: AsyncConnection[Any], job_class: type[JobT], jobs: Iterable[JobT], given: _Given
) -> int:
    count = 0
    together = connection.transaction() if connection.autocommit else nullcontext()
    with _Explained(job_class) as explained:
        async with together, AsyncCursor(connection, row_factory=tuple_row) as cursor:
            if given.delay is not None:
                await cursor.execute(_LATER, [given.delay])
                given = _at(given, await cursor.fetchone())
            if _must_ask(job_class):
                await cursor.execute(*_question(job_class))
                _note(job_class, await cursor.fetchone())
            given = _traced(job_class, given)
            statement = _copy_statement(job_class, given.columns)
            for rows in _batches(job_class, jobs, given):
                async with cursor.copy(statement) as copying:
                    for explained.row in rows:
                        await copying.write_row(explained.row)
                count += cursor.rowcount
    return count


_BATCH = 10_000
_LATER = "SELECT now() + %s"


def _at(given: _Given, later: tuple[Any, ...] | None) -> _Given:
    assert later is not None
    return given._replace(delay=None, run_at=later[0])


def _copy_statement(job_class: type[Job], given: tuple[str, ...]) -> sql.Composed:
    names = (*definition(job_class).column_names, *given)
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    return sql.SQL("COPY {} ({}) FROM STDIN").format(identifier(definition(job_class).table), columns)


def _batches(job_class: type[JobT], jobs: Iterable[JobT], given: _Given) -> Iterator[Iterable[tuple[Any, ...]]]:
    """Rows to copy. Some at a time, unless all jobs are there: a generator may read from this connection, but not during a COPY."""
    extra = [value for value in given if value is not None]
    for batch in [jobs] if jobs and isinstance(jobs, list | tuple) else _parts(jobs):
        if set(map(type, batch)) - {job_class}:
            wrong = next(job for job in batch if type(job) is not job_class)
            raise EnqueueError(f"perform_many of {job_class.__name__} got {_described(wrong)}")
        fields = [_values(column, batch) for column in definition(job_class).columns]
        yield zip(*fields, *(repeat(value, len(batch)) for value in extra), strict=True)


def _parts(jobs: Iterable[JobT]) -> Iterator[list[JobT]]:
    jobs = iter(jobs)
    while part := list(islice(jobs, _BATCH)):
        yield part


def _values(column: Column, jobs: Sequence[JobT]) -> Iterable[Any]:
    values = map(attrgetter(column.name), jobs)
    return values if column.to_database is None else map(column.value, values)


# --- traces ---

_takes_traces: dict[str, bool] = {}
"""Whether a table has a column for them that this role may write, by its name in the class. Asked once, by the first who traces."""


def _must_ask(job_class: type[Job]) -> bool:
    return tracing.current_traceparent() is not None and definition(job_class).table not in _takes_traces


def _question(job_class: type[Job]) -> tuple[LiteralString, list[str]]:
    return _ASKED, [tracing.COLUMN, identifier(definition(job_class).table).as_string()]


_ASKED = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = found.oid AND attname = %s AND NOT attisdropped
               AND has_column_privilege(found.oid, attnum, 'INSERT'))
FROM (SELECT to_regclass(%s) AS oid) AS found WHERE found.oid IS NOT NULL"""


def _note(job_class: type[Job], row: tuple[Any, ...] | None) -> None:
    """None: there is no such table yet."""
    if row is not None:
        _takes_traces[definition(job_class).table] = row[0]


def _traced(job_class: type[Job], given: _Given) -> _Given:
    takes = _takes_traces.get(definition(job_class).table, False)
    return given._replace(traceparent=tracing.current_traceparent()) if takes else given


# --- refusals ---


class _Explained:
    """Turns errors that say that the class, its table or a value do not fit into EnqueueError; lets others pass."""

    def __init__(self, job_class: type[Job], row: Sequence[Any] = ()) -> None:
        self._job_class = job_class
        self.row = row
        """The values that are being sent, the class's columns first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if isinstance(error, psycopg.Error) and error.diag.context is not None:
            return  # raised inside a trigger
        table = definition(self._job_class).table
        match error:
            case errors.UndefinedTable() | errors.InvalidSchemaName():
                raise EnqueueError(f"table {table} does not exist: run `cluster migrate`") from error
            case errors.UndefinedColumn():
                raise EnqueueError(f"{error.diag.message_primary}: run `cluster migrate`") from error
            case psycopg.DataError(sqlstate=None) | UnicodeEncodeError():
                raise EnqueueError(f"{self._job_class.__name__}{self._unstorable_field()}: {error}") from error

    def _unstorable_field(self) -> str:
        for name, value in zip(definition(self._job_class).column_names, self.row, strict=False):
            if isinstance(value, str) and ("\0" in value or not _encodable(value)):
                return f".{name} can't be stored"
        return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_job(job: object, function: str) -> None:
    if not isinstance(job, Job):
        raise EnqueueError(f"{function} takes a job, not {_described(job)}")


def _described(thing: object) -> str:
    if isinstance(thing, type):
        hint = f": make a job of it, {thing.__name__}(…)" if issubclass(thing, Job) else ""
        return f"the class {thing.__name__}{hint}"
    return f"a {type(thing).__name__}" if isinstance(thing, Job) else repr(thing)[:80]


_INSTEAD = {
    "psycopg_pool": "take a connection from the pool: `with pool.connection() as connection`",
    "sqlalchemy": "pass `session.connection().connection.driver_connection`, of an engine on postgresql+psycopg://",
    "django": "pass `django.db.connection.connection`",
    "psycopg2": "connect with psycopg 3: `import psycopg`",
    "cluster": "call its own method: `client.enqueue(job)`",
}


def _usable(connection: Any) -> AnyConnection:  # Any: callers without a type checker give anything
    if not isinstance(connection, Connection | AsyncConnection):
        kind = type(connection)
        library = kind.__module__.partition(".")[0]
        advice = _INSTEAD.get(library, "pass what psycopg.connect() returns")
        raise EnqueueError(
            f"a psycopg Connection or AsyncConnection is needed, not {kind.__module__}.{kind.__qualname__}: {advice}"
        )
    if connection.closed:
        raise EnqueueError("the connection is closed: pass an open one")
    return connection
