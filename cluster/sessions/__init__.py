"""The connections and sessions that applications enqueue on, told apart by what they can do: no library is imported for it.

`bind` wraps each in a Sync or an Async that runs one statement in the caller's transaction. What has to be said to a database is
written once, as a Conversation, and held by `talk` or `atalk`. For other libraries, applications give a Sync or an Async.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Generator, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from psycopg import AsyncConnection, Connection

from cluster.errors import EnqueueError

Row: TypeAlias = Sequence[Any] | None
Ask: TypeAlias = tuple[str, Sequence[Any]]
"""A statement with %s for each value, and no other percent sign; and the values, at least one."""
T = TypeVar("T")
Conversation: TypeAlias = Generator[Ask, Row, T]
"""Gives statements, takes the first row of each, and ends with what came of it."""
Awaited: TypeAlias = Coroutine[Any, Any, T]
"""What an async session gives: a coroutine, so that type checkers find the `await` that was forgotten."""


@runtime_checkable
class Sync(Protocol):
    """One caller's session. placeholder: how its driver writes the first value, "%s" or "$1".

    The protocol for adapters of one's own; `cluster.testing.check_session_adapter` tells whether one does what it must.
    """

    placeholder: str

    def row(self, statement: str, values: Sequence[Any]) -> Row:
        """Runs the statement in the session's transaction, begun if there is none; its first row."""

    def in_transaction(self) -> bool:
        """Whether the caller has one open."""

    def look(self, statement: str, values: Sequence[Any]) -> Row:
        """As row, of a session that is in no transaction, and leaves it so."""

    def database(self) -> str | None:
        """The database's name. None: it can't be known."""


@runtime_checkable
class Async(Protocol):
    """As Sync, awaited."""

    placeholder: str

    async def row(self, statement: str, values: Sequence[Any]) -> Row: ...

    def in_transaction(self) -> bool: ...

    async def look(self, statement: str, values: Sequence[Any]) -> Row: ...

    def database(self) -> str | None: ...


# --- what callers have, for type checkers: `await` is needed where a method of theirs has to be awaited ---


class _Result(Protocol):
    def fetchone(self) -> Any: ...


class CoreConnection(Protocol):
    """Connection of SQLAlchemy."""

    def exec_driver_sql(self, statement: str, parameters: Any = ..., /) -> _Result: ...


class AsyncCoreConnection(Protocol):
    """AsyncConnection of SQLAlchemy."""

    async def exec_driver_sql(self, statement: str, parameters: Any = ..., /) -> _Result: ...


class OrmSession(Protocol):
    """Session of SQLAlchemy or SQLModel; scoped_session."""

    def connection(self) -> CoreConnection: ...

    def flush(self) -> None: ...


class AsyncOrmSession(Protocol):
    """AsyncSession of SQLAlchemy or SQLModel; async_scoped_session."""

    async def connection(self) -> AsyncCoreConnection: ...

    async def flush(self) -> None: ...


class DjangoConnection(Protocol):
    """django.db.connection, or connections["another"]."""

    @property
    def vendor(self) -> str: ...

    def cursor(self) -> Any: ...

    def ensure_connection(self) -> Any: ...


class AsyncpgConnection(Protocol):
    """Connection of asyncpg, or what its pool lends."""

    async def fetchrow(self, query: str, /, *args: Any) -> Any: ...

    def is_in_transaction(self) -> bool: ...


SyncSession: TypeAlias = Connection[Any] | CoreConnection | OrmSession | DjangoConnection | Sync
AsyncSession: TypeAlias = AsyncConnection[Any] | AsyncCoreConnection | AsyncOrmSession | AsyncpgConnection | Async


def bind(session: Any) -> Sync | Async:  # Any: callers without a type checker give anything
    """EnqueueError: it is nothing that a job can be enqueued on, or it is closed."""
    from cluster.sessions import asyncpg, django, psycopg, sqlalchemy

    if isinstance(session, Connection):
        return psycopg.Psycopg(session)
    if isinstance(session, AsyncConnection):
        return psycopg.AsyncPsycopg(session)
    if isinstance(session, type) or _library(session) == "cluster":
        raise _unusable(session)
    if hasattr(session, "placeholder") and isinstance(session, Sync):  # or an Async, which has the same methods
        return session
    if hasattr(session, "exec_driver_sql"):
        is_async = inspect.iscoroutinefunction(session.exec_driver_sql)
        return sqlalchemy.AsyncCore(session) if is_async else sqlalchemy.Core(session)
    if callable(getattr(session, "connection", None)) and hasattr(session, "flush"):
        is_async = inspect.iscoroutinefunction(session.connection)
        return sqlalchemy.AsyncOrm(session) if is_async else sqlalchemy.Orm(session)
    if hasattr(session, "ensure_connection"):
        return django.Django(session)
    if hasattr(session, "fetchrow") and hasattr(session, "is_in_transaction"):
        return asyncpg.Asyncpg(session)
    raise _unusable(session)


def is_async(bound: Sync | Async) -> bool:
    """Whether its methods are awaited."""
    return inspect.iscoroutinefunction(bound.row)


def converse(session: Any, conversation: Conversation[T]) -> T | Awaited[T]:
    """On whatever the caller has; awaited on an async session."""
    return hold(bind(session), conversation)


def hold(bound: Sync | Async, conversation: Conversation[T]) -> T | Awaited[T]:
    """Awaited on an async one."""
    if is_async(bound):
        return atalk(cast("Async", bound), conversation)
    return talk(cast("Sync", bound), conversation)


def talk(session: Sync, conversation: Conversation[T]) -> T:
    try:
        ask = next(conversation)
        while True:
            try:
                row = session.row(*ask)
            except Exception as error:  # noqa: BLE001 - the conversation explains it, or lets it pass
                ask = conversation.throw(error)
            else:
                ask = conversation.send(row)
    except StopIteration as end:
        value: T = end.value
        return value


async def atalk(session: Async, conversation: Conversation[T]) -> T:
    try:
        ask = next(conversation)
        while True:
            try:
                row = await session.row(*ask)
            except Exception as error:  # noqa: BLE001 - the conversation explains it, or lets it pass
                ask = conversation.throw(error)
            else:
                ask = conversation.send(row)
    except StopIteration as end:
        value: T = end.value
        return value


@lru_cache
def numbered(statement: str) -> str:
    """The statement with $1, $2 … for its values."""
    first, *rest = statement.split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


_INSTEAD = {
    "psycopg_pool": "take a connection from the pool: `with pool.connection() as connection`",
    "sqlalchemy": "pass a Session, or a connection of the engine: `with engine.begin() as connection`",
    "asyncpg": "take a connection from the pool: `async with pool.acquire() as connection`",
    "psycopg2": "execute what `job.insert()` gives: `cursor.execute(*job.insert())`",
    "pg8000": "execute what `job.insert()` gives: `cursor.execute(*job.insert())`",
    "cluster": "call its own method: `client.enqueue(job)`",
}


def _library(session: Any) -> str:
    return type(session).__module__.partition(".")[0]


def _unusable(session: Any) -> EnqueueError:
    kind = type(session)
    advice = _INSTEAD.get(
        _library(session),
        "pass a connection of psycopg, SQLAlchemy, Django or asyncpg; for other drivers there is `job.insert()`",
    )
    return EnqueueError(f"nothing can be enqueued on a {kind.__module__}.{kind.__qualname__}: {advice}")
