"""SQLAlchemy's connections and sessions, and so SQLModel's, with any driver for Postgres.

Statements go through SQLAlchemy, not to the driver's connection below it: so the transaction is one that SQLAlchemy knows of and
commits, its events and its echo show them, and errors are its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cluster.errors import EnqueueError
from cluster.sessions import Row, numbered

# Any, throughout: the library need not be installed.


class Core:
    """A Connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.placeholder = _placeholder(connection)

    def row(self, statement: str, values: Sequence[Any]) -> Row:
        return _first(self._connection.exec_driver_sql(*_asked(self.placeholder, statement, values)))

    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction())

    def look(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return self.row(statement, values)
        finally:
            self._connection.rollback()

    def database(self) -> str | None:
        return _database(self._connection)


class AsyncCore:
    """An AsyncConnection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.placeholder = _placeholder(connection)

    async def row(self, statement: str, values: Sequence[Any]) -> Row:
        return _first(await self._connection.exec_driver_sql(*_asked(self.placeholder, statement, values)))

    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction())

    async def look(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return await self.row(statement, values)
        finally:
            await self._connection.rollback()

    def database(self) -> str | None:
        return _database(self._connection)


class Orm:
    """A Session. What it has not written yet is written first, as before its own queries: the job may refer to it."""

    def __init__(self, session: Any) -> None:
        self._session = _of_the_scope(session)
        self.placeholder = _placeholder(session.get_bind())

    def row(self, statement: str, values: Sequence[Any]) -> Row:
        if self._session.autoflush:
            self._session.flush()
        return Core(self._session.connection()).row(statement, values)

    def in_transaction(self) -> bool:
        return bool(self._session.in_transaction())

    def look(self, statement: str, values: Sequence[Any]) -> Row:
        # By itself: the end of a transaction of the session's would expire all objects in it.
        with self._session.get_bind().connect() as connection:
            return Core(connection).look(statement, values)

    def database(self) -> str | None:
        return _database(self._session.get_bind())


class AsyncOrm:
    """An AsyncSession."""

    def __init__(self, session: Any) -> None:
        self._session = _of_the_scope(session)
        self.placeholder = _placeholder(session.get_bind())

    async def row(self, statement: str, values: Sequence[Any]) -> Row:
        if self._session.autoflush:
            await self._session.flush()
        return await AsyncCore(await self._session.connection()).row(statement, values)

    def in_transaction(self) -> bool:
        return bool(self._session.in_transaction())

    async def look(self, statement: str, values: Sequence[Any]) -> Row:
        engine = sys.modules["sqlalchemy.ext.asyncio"].AsyncEngine(self._session.get_bind())
        async with engine.connect() as connection:
            return await AsyncCore(connection).look(statement, values)

    def database(self) -> str | None:
        return _database(self._session.get_bind())


def _of_the_scope(session: Any) -> Any:
    """A scoped_session passes on part of what a session can do."""
    return session.registry() if hasattr(session, "registry") else session


def _placeholder(bound: Any) -> str:
    """bound: a connection or an engine."""
    if bound.dialect.name != "postgresql":
        raise EnqueueError(f"jobs are rows in Postgres: this is a connection to {bound.dialect.name}")
    if getattr(bound, "closed", False):
        raise EnqueueError("the connection is closed: pass an open one")
    return "$1" if bound.dialect.paramstyle == "numeric_dollar" else "%s"


def _database(bound: Any) -> str | None:
    """bound: a connection or an engine. None: the engine has a function that connects."""
    name: str | None = bound.engine.url.database
    return name


def _asked(placeholder: str, statement: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    return (numbered(statement) if placeholder == "$1" else statement), tuple(values)


def _first(result: Any) -> Row:
    try:
        return None if (row := result.fetchone()) is None else tuple(row)
    finally:
        result.close()
