"""What applications enqueue on, opened on a test's database: one function for each kind, in a transaction of the caller.

Each is given with how its own library runs a statement and ends the transaction, so that tests of all kinds read alike.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeVar

import asyncpg
import django
import psycopg
import sqlalchemy
import sqlmodel
import sqlmodel.ext.asyncio.session
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

T = TypeVar("T")


@dataclass
class Opened:
    """session: Any, as an application without a type checker has it. end: commits, or rolls back. close: ends the connection."""

    session: Any
    execute: Callable[[str], Any]
    end: Callable[[bool], Any]
    close: Callable[[], Any]


async def settled(value: Awaitable[T] | T) -> T:
    """As it is, or awaited."""
    return await value if isawaitable(value) else value


def _ends(owner: Any) -> Callable[[bool], Any]:
    return lambda commit: owner.commit() if commit else owner.rollback()


@asynccontextmanager
async def psycopg_connection(url: str) -> AsyncIterator[Opened]:
    with psycopg.connect(url) as connection:
        yield Opened(connection, connection.execute, _ends(connection), connection.close)


@asynccontextmanager
async def psycopg_async_connection(url: str) -> AsyncIterator[Opened]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield Opened(connection, connection.execute, _ends(connection), connection.close)


def _sync_engine(url: str, driver: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(_with_driver(url, driver), poolclass=NullPool)


def _with_driver(url: str, driver: str) -> sqlalchemy.URL:
    """The server of the tests listens on a socket, which each driver names in its own way; another's may not."""
    given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    if not given["host"].startswith("/"):
        return sqlalchemy.make_url(url).set(drivername=f"postgresql+{driver}")
    query = {"unix_sock": socket_file(url)} if driver == "pg8000" else {name: given[name] for name in ("host", "port")}
    return sqlalchemy.URL.create(
        f"postgresql+{driver}", given["user"], given.get("password"), database=given["dbname"], query=query
    )


def socket_file(url: str) -> str:
    given = conninfo_to_dict(url)
    return f"{given['host']}/.s.PGSQL.{given['port']}"


def core(driver: str) -> Kind:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        with _sync_engine(url, driver).connect() as connection:
            yield Opened(connection, connection.exec_driver_sql, _ends(connection), connection.close)

    return opened


def orm(make: Callable[[sqlalchemy.Engine], Any], driver: str) -> Kind:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        session = make(_sync_engine(url, driver))
        try:
            yield Opened(
                session, lambda text: session.connection().exec_driver_sql(text), _ends(session), session.close
            )
        finally:
            session.close()

    return opened


def async_core(driver: str) -> Kind:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        engine = create_async_engine(_with_driver(url, driver), poolclass=NullPool)
        async with engine.connect() as connection:
            assert isinstance(connection, AsyncConnection)
            yield Opened(connection, connection.exec_driver_sql, _ends(connection), connection.close)

    return opened


def async_orm(make: Callable[[Any], Any], driver: str) -> Kind:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        async with make(create_async_engine(_with_driver(url, driver), poolclass=NullPool)) as session:

            async def execute(text: str) -> None:
                await (await session.connection()).exec_driver_sql(text)

            yield Opened(session, execute, _ends(session), session.close)

    return opened


def configure_django() -> None:
    """Once in a process: tests share its settings."""
    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "given later"}})
        django.setup()


def django_connection(alias: str) -> Kind:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Opened]:
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # this is one test at a time, not a server
        configure_django()
        from django.db import connection, connections, transaction

        connections.settings.setdefault(
            alias, dict(connections.settings["default"])
        )  # another test may have configured them
        given = conninfo_to_dict(url)
        wrapper = connections[alias]
        wrapper.settings_dict.update(
            NAME=given["dbname"],
            HOST=given["host"],
            PORT=given["port"],
            USER=given["user"],
            PASSWORD=given.get("password", ""),
        )
        session = connection if alias == "default" else wrapper
        atomic = transaction.atomic(using=alias)

        def execute(text: str) -> None:
            with wrapper.cursor() as cursor:
                cursor.execute(text)

        def end(commit: bool) -> None:
            error = None if commit else LookupError("the request failed")
            atomic.__exit__(None if commit else LookupError, error, None)

        assert wrapper.connection is None, "as in an application before its first query"
        atomic.__enter__()
        try:
            yield Opened(session, execute, end, wrapper.close)
        finally:
            if wrapper.in_atomic_block:
                end(False)
            wrapper.close()

    return opened


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[Opened]:
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    yield Opened(connection, connection.execute, _ends(transaction), connection.close)
    await connection.close()


@asynccontextmanager
async def asyncpg_pool_connection(url: str) -> AsyncIterator[Opened]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield Opened(connection, connection.execute, _ends(transaction), connection.close)


Kind = Callable[[str], AbstractAsyncContextManager[Opened]]
KINDS: dict[str, Kind] = {
    "psycopg": psycopg_connection,
    "psycopg-async": psycopg_async_connection,
    "core-psycopg": core("psycopg"),
    "core-psycopg2": core("psycopg2"),
    "core-pg8000": core("pg8000"),
    "session-psycopg": orm(Session, "psycopg"),
    "scoped-session-psycopg2": orm(lambda engine: scoped_session(sessionmaker(engine)), "psycopg2"),
    "sqlmodel-psycopg": orm(sqlmodel.Session, "psycopg"),
    "async-core-psycopg": async_core("psycopg"),
    "async-core-asyncpg": async_core("asyncpg"),
    "async-session-psycopg": async_orm(AsyncSession, "psycopg"),
    "async-session-asyncpg": async_orm(AsyncSession, "asyncpg"),
    "async-sqlmodel-asyncpg": async_orm(sqlmodel.ext.asyncio.session.AsyncSession, "asyncpg"),
    "django": django_connection("default"),
    "django-alias": django_connection("another"),
    "asyncpg": asyncpg_connection,
    "asyncpg-pool": asyncpg_pool_connection,
}
