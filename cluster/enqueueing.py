"""Enqueueing on a connection or session of the caller: one job, or many.

Writes rows of job tables in the caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from itertools import chain, islice, repeat
from operator import attrgetter
from types import TracebackType
from typing import Any, LiteralString, NamedTuple, Self, TypeVar

import psycopg
from psycopg import AsyncCursor, Cursor, sql
from psycopg.rows import tuple_row

from cluster import insertion, tracing
from cluster.columns import Column
from cluster.errors import EnqueueError
from cluster.insertion import Given
from cluster.job import Job, definition
from cluster.sessions import (
    Ask,
    Async,
    AsyncSession,
    Awaited,
    Conversation,
    Sync,
    SyncSession,
    atalk,
    bind,
    hold,
    numbered,
    talk,
)
from cluster.sessions.psycopg import AsyncPsycopg, Psycopg
from cluster.tables import identifier

JobT = TypeVar("JobT", bound=Job)


def enqueue(
    job: JobT,
    session: SyncSession | AsyncSession,
    *,
    delay: timedelta | None = None,
    run_at: datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
) -> JobT | Awaited[JobT]:
    """Inserts the job; returns a copy that knows its id, or an awaitable of it on an async session.

    What is None is left to the column's default. What the database refuses comes as the error of the session's library.
    """
    check_job(job, "perform_later")
    given = Given.checked(delay, run_at, queue, priority).for_class(type(job))
    bound = bind(session)
    return hold(bound, _insertion(bound, job, given))


def enqueue_many(
    job_class: type[JobT],
    session: SyncSession | AsyncSession,
    jobs: Iterable[JobT],
    *,
    delay: timedelta | None = None,
    run_at: datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
) -> int | Awaited[int]:
    """Inserts the jobs, all of this class: all of them or none. Returns how many are new.

    On psycopg's own connections by COPY. jobs may be a generator, also one that reads from this session: it is consumed some
    thousands at a time. A list is copied while its values are read, which is faster.
    """
    definition(job_class)
    if not isinstance(jobs, Iterable):
        raise EnqueueError(f"perform_many takes an iterable of {job_class.__name__}, not {described(jobs)}")
    given = Given.checked(delay, run_at, queue, priority).for_class(job_class)
    bound = bind(session)
    by_copy = not job_class.unique  # which knows no ON CONFLICT
    if by_copy and isinstance(bound, AsyncPsycopg) and not bound.in_pipeline:
        return _copy_async(bound, job_class, jobs, given)
    if by_copy and isinstance(bound, Psycopg) and not bound.in_pipeline:
        return _copy(bound, job_class, jobs, given)
    return hold(bound, _insertions(bound, job_class, jobs, given))


def statement(
    job: Job,
    placeholder: str,
    *,
    delay: timedelta | None,
    run_at: datetime | None,
    queue: str | None,
    priority: int | None,
) -> tuple[str, list[Any]]:
    """The INSERT of the job, for drivers that `enqueue` does not take. placeholder: "%s" or "$1"."""
    if placeholder not in {"%s", "$1"}:
        raise EnqueueError(f'placeholder is "%s" or "$1", as the driver writes the first value, not {placeholder!r}')
    given = Given.checked(delay, run_at, queue, priority).for_class(type(job))
    text, values = insertion.one(job, given)
    return (numbered(text) if placeholder == "$1" else text), values


# --- one job ---


def _insertion(bound: Sync | Async, job: JobT, given: Given) -> Conversation[JobT]:
    is_native = isinstance(bound, Psycopg | AsyncPsycopg)
    with Explained(type(job), bound) as explained:
        given = yield from _traced(type(job), given)
        statement, explained.row = (insertion.native if is_native else insertion.one)(job, given)
        for _ in range(_TRIES):
            row = yield statement, explained.row
            if row is not None:
                return _known(job, row[0], is_new=True)
            row = (yield insertion.existing(job, given)) if type(job).unique else None
            if row is not None:
                return _known(job, row[0], is_new=False)
    raise EnqueueError(f"a trigger of table {definition(type(job)).table} discarded the row")


_TRIES = 5
"""The job that is in the way of a unique one may be claimed before it is found."""


def _known(job: JobT, job_id: int, *, is_new: bool) -> JobT:
    known = object.__new__(type(job))  # as copy.copy, in a fifth of its time
    known.__dict__.update(job.__dict__, id=job_id, is_new=is_new)
    return known


# --- many jobs ---

_BATCH = 10_000


def _insertions(bound: Sync | Async, job_class: type[JobT], jobs: Iterable[JobT], given: Given) -> Conversation[int]:
    count = 0
    with Explained(job_class, bound):
        given = yield from _traced(job_class, given)
        for batch in (yield from _batches_of(jobs)):
            _check_class(job_class, batch)
            row = yield insertion.many(job_class, batch, given)
            assert row is not None
            count += row[0]
    return count


def _batches_of(jobs: Iterable[JobT]) -> Conversation[Iterable[list[JobT]]]:
    """One statement for all if each is committed by itself: all of them or none."""
    parts = _parts(jobs)
    first = next(parts, [])
    if len(first) < _BATCH:
        return [first] if first else []
    before, after = (yield _BEGUN), (yield _BEGUN)
    if before == after:
        return chain([first], parts)
    return [list(chain(first, *parts))]


_BEGUN: Ask = ("SELECT now()::text || %s::text", [""])
"""When the transaction has begun: it is another at every statement of a session in autocommit, whatever its library calls that."""


# Text, not binary: the server reads each value as the type that its column really has, be it int2, citext or an enum.


def _copy(bound: Psycopg, job_class: type[JobT], jobs: Iterable[JobT], given: Given) -> int:
    count = 0
    connection = bound.connection
    together = connection.transaction() if connection.autocommit else nullcontext()
    with Explained(job_class, bound) as explained, together, Cursor(connection, row_factory=tuple_row) as cursor:
        given = talk(bound, _settled(job_class, given))
        statement = _copy_statement(job_class, given.columns)
        for rows in _batches(job_class, jobs, given):
            with cursor.copy(statement) as copying:
                for explained.row in rows:
                    copying.write_row(explained.row)
            count += cursor.rowcount
    return count


async def _copy_async(bound: AsyncPsycopg, job_class: type[JobT], jobs: Iterable[JobT], given: Given) -> int:
    count = 0
    connection = bound.connection
    together = connection.transaction() if connection.autocommit else nullcontext()
    with Explained(job_class, bound) as explained:
        async with together, AsyncCursor(connection, row_factory=tuple_row) as cursor:
            given = await atalk(bound, _settled(job_class, given))
            statement = _copy_statement(job_class, given.columns)
            for rows in _batches(job_class, jobs, given):
                async with cursor.copy(statement) as copying:
                    for explained.row in rows:
                        await copying.write_row(explained.row)
                count += cursor.rowcount
    return count


def _settled(job_class: type[Job], given: Given) -> Conversation[Given]:
    """With a time in place of a delay, for COPY takes values only."""
    if given.delay is not None:
        row = yield "SELECT now() + %s::text::interval", [insertion.interval(given.delay)]
        assert row is not None
        given = given._replace(delay=None, run_at=row[0])
    return (yield from _traced(job_class, given))


def _copy_statement(job_class: type[Job], given: tuple[str, ...]) -> sql.Composed:
    names = (*definition(job_class).column_names, *given)
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    return sql.SQL("COPY {} ({}) FROM STDIN").format(identifier(definition(job_class).table), columns)


def _batches(job_class: type[JobT], jobs: Iterable[JobT], given: Given) -> Iterator[Iterable[tuple[Any, ...]]]:
    """Rows to copy. Some at a time, unless all jobs are there: a generator may read from this connection, but not during a COPY."""
    extra = [value for value in given if value is not None]
    for batch in [jobs] if jobs and isinstance(jobs, list | tuple) else _parts(jobs):
        _check_class(job_class, batch)
        fields = [_values(column, batch) for column in definition(job_class).columns]
        yield zip(*fields, *(repeat(value, len(batch)) for value in extra), strict=True)


def _parts(jobs: Iterable[JobT]) -> Iterator[list[JobT]]:
    jobs = iter(jobs)
    while part := list(islice(jobs, _BATCH)):
        yield part


def _check_class(job_class: type[Job], jobs: Sequence[Job]) -> None:
    if set(map(type, jobs)) - {job_class}:
        wrong = next(job for job in jobs if type(job) is not job_class)
        raise EnqueueError(f"perform_many of {job_class.__name__} got {described(wrong)}")


def _values(column: Column, jobs: Sequence[JobT]) -> Iterable[Any]:
    values = map(attrgetter(column.name), jobs)
    return values if column.to_database is None else map(column.value, values)


# --- traces ---

_takes_traces: dict[str, bool] = {}
"""Whether a table has a column for them that this role may write, by its name in the class. Asked once, by the first who traces."""


def _traced(job_class: type[Job], given: Given) -> Conversation[Given]:
    """With the caller's span, if the table takes it."""
    traceparent = tracing.current_traceparent()
    if traceparent is None:
        return given
    table = definition(job_class).table
    if table not in _takes_traces:
        row = yield _ASKED, [tracing.COLUMN, identifier(table).as_string()]
        if row is not None:  # None: there is no such table yet
            _takes_traces[table] = row[0]
    return given._replace(traceparent=traceparent) if _takes_traces.get(table, False) else given


_ASKED: LiteralString = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = found.oid AND attname = %s::text AND NOT attisdropped
               AND has_column_privilege(found.oid, attnum, 'INSERT'))
FROM (SELECT to_regclass(%s::text) AS oid) AS found WHERE found.oid IS NOT NULL"""


# --- refusals ---


class Explained:
    """Turns errors that say that the class, its table, a value or the session do not fit into EnqueueError; lets others pass."""

    def __init__(self, job_class: type[Job], bound: Sync | Async) -> None:
        self._job_class = job_class
        self._bound = bound
        self.row: Sequence[Any] = ()
        """The values that are being sent, the class's columns first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, EnqueueError):
            return
        said = said_by_postgres(error)
        if said.context:
            return  # raised inside a trigger
        if said.sqlstate in {"42P01", "3F000"}:  # undefined_table, invalid_schema_name
            table = definition(self._job_class).table
            database = self._bound.database()
            elsewhere = f", or connect to another database than {database}" if database else ""
            raise EnqueueError(f"table {table} does not exist: run `cluster migrate`{elsewhere}") from error
        if said.sqlstate == "42P10":  # invalid_column_reference: nothing for ON CONFLICT
            raise EnqueueError(
                f"table {definition(self._job_class).table} has no unique index yet: run `cluster migrate`"
            ) from error
        if said.sqlstate == "42703":  # undefined_column
            raise EnqueueError(f"{said.message}: run `cluster migrate`") from error
        if type(error).__name__ == "MissingGreenlet":  # of SQLAlchemy
            raise EnqueueError(
                "this is the inner half of an AsyncSession or AsyncConnection: pass that one, and await; or call this inside its"
                " run_sync"
            ) from error
        if isinstance(error, UnicodeEncodeError) or (isinstance(error, psycopg.DataError) and error.sqlstate is None):
            raise EnqueueError(f"{self._job_class.__name__}{self._unstorable_field()}: {error}") from error

    def _unstorable_field(self) -> str:
        for name, value in zip(definition(self._job_class).column_names, self.row, strict=False):
            if isinstance(value, str) and ("\0" in value or not insertion.encodable(value)):
                return f".{name} can't be stored"
        return ""


class Said(NamedTuple):
    """What Postgres said, whichever library brought it; all empty: it was not Postgres."""

    sqlstate: str = ""
    message: str = ""
    context: str = ""


def said_by_postgres(error: BaseException | None) -> Said:
    """Libraries raise errors of their own, and keep the driver's in `orig` or as the cause."""
    while error is not None:
        given: Any = error
        diagnosis = getattr(given, "diag", None)
        state = getattr(given, "sqlstate", None) or getattr(given, "pgcode", None)
        if state and diagnosis is not None:  # psycopg and psycopg2
            return Said(state, diagnosis.message_primary or "", diagnosis.context or "")
        if state and hasattr(given, "message"):  # asyncpg
            return Said(state, given.message or "", getattr(given, "context", None) or "")
        if given.args and isinstance(given.args[0], dict):  # pg8000
            return Said(*(str(given.args[0].get(key, "")) for key in "CMW"))
        error = getattr(given, "orig", None) or error.__cause__
    return Said()


def check_job(job: object, function: str) -> None:
    """EnqueueError: it is none."""
    if not isinstance(job, Job):
        raise EnqueueError(f"{function} takes a job, not {described(job)}")


def described(thing: object) -> str:
    """In a message, what was given in place of something else."""
    if isinstance(thing, type):
        hint = f": make a job of it, {thing.__name__}(…)" if issubclass(thing, Job) else ""
        return f"the class {thing.__name__}{hint}"
    return f"a {type(thing).__name__}" if isinstance(thing, Job) else repr(thing)[:80]
