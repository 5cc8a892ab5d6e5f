"""Type checkers know what each kind of session gives, where `await` is needed, and what is no session."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # mypy may read SQLAlchemy for the first time

SOURCE = """\
# pyright: strict
from datetime import timedelta
from typing import assert_type

import asyncpg
import asyncpg.pool
import psycopg
import psycopg_pool
import sqlalchemy
import sqlalchemy.orm
import sqlmodel
import sqlmodel.ext.asyncio.session
from django.db import connection as django_connection
from django.db import connections
from sqlalchemy.ext import asyncio as aio

from cluster import AsyncClient, Client, Job


class MailJob(Job):
    customer_id: int

    def perform(self) -> None: ...


job = MailJob(customer_id=1)


def sync_kinds(
    connection: psycopg.Connection,
    core: sqlalchemy.Connection,
    session: sqlalchemy.orm.Session,
    scoped: sqlalchemy.orm.scoped_session[sqlalchemy.orm.Session],
    sqlmodel_session: sqlmodel.Session,
    client: Client,
) -> None:
    assert_type(job.perform_later(connection), MailJob)
    assert_type(job.perform_later(core), MailJob)
    assert_type(job.perform_later(session), MailJob)
    assert_type(job.perform_later(scoped), MailJob)
    assert_type(job.perform_later(sqlmodel_session), MailJob)
    assert_type(job.perform_later(django_connection), MailJob)
    assert_type(job.perform_later(connections["another"]), MailJob)
    assert_type(client.enqueue(job), MailJob)
    assert_type(MailJob.perform_many(session, [job]), int)
    assert_type(job.status(session), str | None)
    assert_type(job.wait(connection, timedelta(1)), str | None)
    assert_type(job.cancel(django_connection), str | None)
    assert_type(job.retry(core), str | None)


async def async_kinds(
    connection: psycopg.AsyncConnection,
    core: aio.AsyncConnection,
    session: aio.AsyncSession,
    scoped: aio.async_scoped_session[aio.AsyncSession],
    sqlmodel_session: sqlmodel.ext.asyncio.session.AsyncSession,
    asyncpg_connection: asyncpg.Connection,
    client: AsyncClient,
    lent: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
) -> None:
    assert_type(await job.perform_later(connection), MailJob)
    assert_type(await job.perform_later(core), MailJob)
    assert_type(await job.perform_later(session), MailJob)
    assert_type(await job.perform_later(scoped), MailJob)
    assert_type(await job.perform_later(sqlmodel_session), MailJob)
    assert_type(await job.perform_later(asyncpg_connection), MailJob)
    assert_type(await job.perform_later(lent), MailJob)
    assert_type(await client.enqueue(job), MailJob)
    assert_type(await MailJob.perform_many(session, [job]), int)
    assert_type(await job.status(asyncpg_connection), str | None)
    assert_type(await job.wait(session, timedelta(1)), str | None)
    assert_type(await job.cancel(core), str | None)
    assert_type(await job.retry(connection), str | None)


async def await_where_there_is_nothing_to_await(session: sqlalchemy.orm.Session, core: sqlalchemy.Connection) -> None:
    await job.perform_later(session)  # wrong
    await job.perform_later(core)  # wrong
    await job.perform_later(django_connection)  # wrong


async def forgotten_await(
    connection: psycopg.AsyncConnection,
    core: aio.AsyncConnection,
    session: aio.AsyncSession,
    asyncpg_connection: asyncpg.Connection,
) -> None:
    job.perform_later(connection)  # wrong
    job.perform_later(core)  # wrong
    job.perform_later(session)  # wrong
    job.perform_later(asyncpg_connection)  # wrong
    job.cancel(session)  # wrong
    print(job.perform_later(session).id)  # wrong
    MailJob.perform_many(session, [job])  # wrong


def no_sessions(engine: sqlalchemy.Engine, pool: psycopg_pool.ConnectionPool, asyncpg_pool: asyncpg.Pool) -> None:
    job.perform_later(engine)  # wrong
    job.perform_later(pool)  # wrong
    job.perform_later(asyncpg_pool)  # wrong
    job.perform_later("postgresql://")  # wrong
"""
CHECKERS = {
    "mypy": [
        sys.executable,
        "-m",
        "mypy",
    ],  # strict, by pyproject.toml; so it finds in its cache what `make types` has read
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", ["mypy", pytest.param("pyright", marks=pytest.mark.needs("pyright"))])
def test_a_checker_finds_what_is_wrong_on_each_kind_of_session_and_nothing_else(checker: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions.py"
    path.write_text(SOURCE)
    ran = subprocess.run(
        [*CHECKERS[checker], str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    found = {int(line) for line in re.findall(r"sessions\.py:(\d+):(?:\d+ -)? error: ", ran.stdout)}
    assert found == {number for number, line in enumerate(SOURCE.splitlines(), 1) if "# wrong" in line}, ran.stdout
