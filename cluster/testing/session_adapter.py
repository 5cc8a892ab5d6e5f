"""The conformance suite of session adapters: what enqueueing asks of `cluster.sessions.Sync` and `Async`, on a real database."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import psycopg

from cluster.errors import EnqueueError, WaitTimeoutError
from cluster.job import Job
from cluster.migration import migrate_jobs, migrate_schema
from cluster.sessions import Async, Sync

T = TypeVar("T")
SyncT = TypeVar("SyncT", bound=Sync)
AsyncT = TypeVar("AsyncT", bound=Async)
_TABLE = "session_adapter_jobs"
_VALUE = 'it\'s 100 % "of" $1, %s and ? \\ {}: ü, 🎈\n'


def check_session_adapter(
    open_session: Callable[[], SyncT], end: Callable[[SyncT, bool], object], database: str
) -> None:
    """AssertionError: the adapter is not one that jobs can be enqueued on, and what it must do.

    open_session: gives the adapter of a new session. end: commits its transaction, or (False) rolls it back. database: the URL of
    the test's database, in which a job table is made for this, and dropped.
    """
    suite = _check(open_session, end, database)
    try:
        suite.send(None)
    except StopIteration:
        return
    raise AssertionError("a method of the adapter is async: check_async_session_adapter checks those")


async def check_async_session_adapter(
    open_session: Callable[[], Awaitable[AsyncT]], end: Callable[[AsyncT, bool], Awaitable[object]], database: str
) -> None:
    """As check_session_adapter, awaited."""
    await _check(open_session, end, database)


def _job_class() -> type[Any]:  # Any: its fields
    class SessionAdapterJob(Job):
        table = _TABLE
        unique = ("text",)
        text: str

        def perform(self) -> None: ...

    return SessionAdapterJob


async def _check(open_session: Callable[[], Any], end: Callable[[Any, bool], Any], database: str) -> None:
    job_class = _job_class()
    with psycopg.connect(database, autocommit=True, options="-c lock_timeout=10s") as look:
        migrate_schema(look)
        migrate_jobs(look, [job_class])
        session = await _settled(open_session())
        try:
            await _check_rows(session, end)
            await _check_transactions(session, end, job_class, look)
            await _check_jobs(session, end, job_class)
            await _check_errors(session, end, job_class, look)
        finally:
            with suppress(Exception):  # what is wrong with the adapter is told already
                await _settled(end(session, False))
            look.execute(f"DROP TABLE IF EXISTS {_TABLE}")
            look.execute("DELETE FROM cluster.job_types WHERE name = 'SessionAdapterJob'")


async def _check_rows(session: Any, end: Callable[[Any, bool], Any]) -> None:
    assert session.placeholder in {"%s", "$1"}, 'placeholder is "%s" or "$1", as the driver writes the first value'
    row = await _settled(session.row("SELECT %s::text, %s::bigint, NULL WHERE %s::text <> ''", [_VALUE, 2**40, "x"]))
    assert row is not None, "row returns the first row"
    assert list(row) == [_VALUE, 2**40, None], (
        f"row sends values as they are, and returns those of the row, not {row!r}"
    )
    row = await _settled(session.row("SELECT n FROM generate_series(1, %s::integer) AS n ORDER BY n", [3]))
    assert list(row) == [1], f"row returns the first row of several, not {row!r}"
    row = await _settled(session.row("SELECT 1 WHERE %s::boolean", [False]))
    assert row is None, f"row returns None where there is no row, not {row!r}"
    await _settled(end(session, True))
    assert session.in_transaction() is False, "in_transaction is False once the transaction has ended"


async def _check_transactions(
    session: Any, end: Callable[[Any, bool], Any], job_class: type[Any], look: psycopg.Connection[Any]
) -> None:
    await _settled(job_class(text="kept").perform_later(session))
    assert session.in_transaction() is True, "row begins a transaction if there is none, and leaves it open"
    assert _texts(look) == set(), "row never commits: that is its caller's"
    await _settled(end(session, True))
    assert _texts(look) == {"kept"}, "what is committed is there"
    await _settled(job_class(text="undone").perform_later(session))
    await _settled(end(session, False))
    assert _texts(look) == {"kept"}, "a rollback takes the job with it"
    row = await _settled(session.look("SELECT count(*) FROM session_adapter_jobs WHERE text = %s::text", ["kept"]))
    assert list(row) == [1], f"look sees what is committed, and returns the first row, not {row!r}"
    assert session.in_transaction() is False, "look leaves the session in no transaction"


async def _check_jobs(session: Any, end: Callable[[Any, bool], Any], job_class: type[Any]) -> None:
    job = await _settled(job_class(text=_VALUE).perform_later(session, delay=timedelta(days=1), queue="q", priority=7))
    again = await _settled(job_class(text=_VALUE).perform_later(session))
    assert (again.id, again.is_new) == (job.id, False), "the second of two unique jobs is the first"
    assert await _settled(job.status(session)) == "scheduled", "status sees what its own transaction has written"
    error = await _error_of(lambda: job.wait(session, timeout=timedelta(seconds=1)))
    assert isinstance(error, EnqueueError), (
        "wait in an open transaction is an error: in_transaction says that there is one"
    )
    assert await _settled(job.cancel(session)) == "cancelled", "cancel writes, and returns the status then"
    await _settled(end(session, True))
    assert await _settled(job.wait(session, timeout=timedelta(seconds=5))) == "cancelled", (
        "wait looks until it has finished"
    )
    assert await _settled(job.retry(session)) == "not_started", "retry writes, and returns the status then"
    await _settled(end(session, True))
    error = await _error_of(lambda: job.wait(session, timeout=timedelta(milliseconds=50)))
    assert isinstance(error, WaitTimeoutError), f"wait gives up in time, whereas this is {error!r}"
    jobs = [job_class(text=f"many {number % 2}") for number in range(3)]
    assert await _settled(job_class.perform_many(session, jobs)) == 2, "perform_many returns how many are new"
    await _settled(end(session, False))


async def _check_errors(
    session: Any, end: Callable[[Any, bool], Any], job_class: type[Any], look: psycopg.Connection[Any]
) -> None:
    look.execute(f"DROP TABLE {_TABLE}")
    error = await _error_of(lambda: job_class(text="no table").perform_later(session))
    assert isinstance(error, EnqueueError), (
        f"what Postgres says has to be found in the error, {error!r}, or its __cause__: as sqlstate, as psycopg and asyncpg have it"
    )
    assert "run `cluster migrate`" in str(error), error
    await _settled(end(session, False))
    assert session.in_transaction() is False, "a rollback ends a transaction that has failed"


def _texts(look: psycopg.Connection[Any]) -> set[str]:
    return {text for (text,) in look.execute("SELECT text FROM session_adapter_jobs")}


async def _error_of(call: Callable[[], Any]) -> Exception | None:
    try:
        await _settled(call())
    except Exception as error:  # noqa: BLE001 - looked at by the caller
        return error
    return None


async def _settled(value: Awaitable[T] | T) -> T:
    """As it is, or awaited."""
    return await value if inspect.isawaitable(value) else value
