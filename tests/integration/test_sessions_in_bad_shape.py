"""Sessions that are closed, failed, read-only, in autocommit, serializable, in a pipeline, elsewhere, or of the other colour."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from django.db import Error as DjangoError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from cluster import Job
from cluster.enqueueing import said_by_postgres
from cluster.errors import EnqueueError, WaitTimeoutError
from cluster.migration import migrate_jobs
from tests.support.session_kinds import KINDS, Kind, async_orm, settled


class BareJob(Job):
    def perform(self) -> None: ...


class RefreshJob(Job):
    number: int

    unique = ("number",)

    def perform(self) -> None: ...


ADAPTERS = [
    "psycopg",
    "psycopg-async",
    "core-psycopg2",
    "core-pg8000",
    "session-psycopg",
    "async-core-psycopg",
    "async-session-asyncpg",
    "django",
    "asyncpg",
]
"""One kind for each way in which statements are sent and errors come back."""


@pytest.fixture(params=ADAPTERS)
def each_adapter(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def tables(conn: psycopg.Connection) -> psycopg.Connection:
    migrate_jobs(conn, [BareJob, RefreshJob])
    return conn


def count(conn: psycopg.Connection, table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def known() -> BareJob:
    job = BareJob()
    job.id = 1
    return job


LIBRARIES = (psycopg.Error, sqlalchemy.exc.DBAPIError, DjangoError, asyncpg.PostgresError)


async def test_in_a_transaction_that_has_failed_and_one_that_only_reads_postgres_says_so(
    tables: psycopg.Connection, database_url: str, each_adapter: Kind
) -> None:
    async with each_adapter(database_url) as opened:
        with pytest.raises(LIBRARIES):
            await settled(opened.execute("SELECT 1 / 0"))
        for enqueue in (BareJob().perform_later, lambda session: BareJob.perform_many(session, [BareJob()])):
            with pytest.raises(LIBRARIES) as caught:
                await settled(enqueue(opened.session))
            assert said_by_postgres(caught.value).sqlstate == "25P02"  # in_failed_sql_transaction
        with pytest.raises(EnqueueError, match="commit first"):
            await settled(known().wait(opened.session, timedelta(seconds=1)))
    async with each_adapter(database_url) as opened:
        await settled(opened.execute("SET TRANSACTION READ ONLY"))
        with pytest.raises(LIBRARIES) as caught:
            await settled(BareJob().perform_later(opened.session))
        assert said_by_postgres(caught.value).sqlstate == "25006"  # read_only_sql_transaction


async def test_a_serializable_transaction_enqueues_unique_jobs_too(
    tables: psycopg.Connection, database_url: str, each_adapter: Kind
) -> None:
    async with each_adapter(database_url) as opened:
        await settled(opened.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        first = await settled(RefreshJob(number=1).perform_later(opened.session))
        again = await settled(RefreshJob(number=1).perform_later(opened.session))
        assert await settled(RefreshJob.perform_many(opened.session, [RefreshJob(number=n) for n in (1, 2)])) == 1
        await settled(opened.end(True))
    assert (again.id, again.is_new) == (first.id, False)
    assert count(tables, "refresh_jobs") == 2


async def test_a_database_without_the_tables_is_named(empty_database_url: str, each_adapter: Kind) -> None:
    asked: list[Any] = [
        BareJob().perform_later,
        lambda session: BareJob.perform_many(session, [BareJob()]),
        known().status,
        known().cancel,
        known().retry,
    ]
    name = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    said = f"table bare_jobs does not exist: run `cluster migrate`, or connect to another database than {name}"
    for ask in asked:
        async with each_adapter(empty_database_url) as opened:
            with pytest.raises(EnqueueError, match=said):
                await settled(ask(opened.session))
    async with each_adapter(empty_database_url) as opened:
        await settled(opened.end(True))
        with pytest.raises(EnqueueError, match=said):
            await settled(known().wait(opened.session, timedelta(seconds=1)))


# --- autocommit ---


async def test_many_jobs_in_autocommit_are_all_there_or_none(tables: psycopg.Connection, database_url: str) -> None:
    """More than go into one statement otherwise. The last one is refused."""
    tables.execute("ALTER TABLE refresh_jobs ADD CHECK (number >= 0)")
    jobs = [*(RefreshJob(number=n) for n in range(10_001)), RefreshJob(number=-1)]
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database_url), isolation_level="AUTOCOMMIT"
    )
    connection = await asyncpg.connect(database_url)
    with psycopg.connect(database_url, autocommit=True) as own, engine.connect() as core:
        for session in (own, core, connection):
            with pytest.raises(LIBRARIES, match="violates check constraint"):
                await settled(RefreshJob.perform_many(session, jobs))
            assert count(tables, "refresh_jobs") == 0
        assert await settled(RefreshJob.perform_many(core, (job for job in jobs if job.number >= 0))) == 10_001
    await connection.close()
    engine.dispose()


def test_in_a_transaction_many_jobs_go_by_several_statements(tables: psycopg.Connection, database_url: str) -> None:
    statements: list[str] = []
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database_url))
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with engine.begin() as core:
        assert RefreshJob.perform_many(core, (RefreshJob(number=n) for n in range(10_001))) == 10_001
    assert sum("INSERT" in statement for statement in statements) == 2
    engine.dispose()


# --- a pipeline ---


def test_a_pipeline_takes_one_job_and_many_though_copy_is_not_for_it(
    tables: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection, connection.pipeline():
        queued = BareJob().perform_later(connection)
        assert BareJob.perform_many(connection, [BareJob(), BareJob()]) == 2
        assert queued.cancel(connection) == "cancelled"
    assert count(tables, "bare_jobs") == 3


async def test_an_async_pipeline_does_so_too(tables: psycopg.Connection, database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection, connection.pipeline():
        await BareJob().perform_later(connection)
        assert await BareJob.perform_many(connection, [BareJob(), BareJob()]) == 2
    assert count(tables, "bare_jobs") == 3


# --- sync and async ---


@pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited")  # SQLAlchemy's own
async def test_the_inner_half_of_an_async_session_says_what_to_pass(
    tables: psycopg.Connection, database_url: str
) -> None:
    async with async_orm(AsyncSession, "asyncpg")(database_url) as opened:
        with pytest.raises(EnqueueError, match="pass that one, and await; or call this inside its run_sync"):
            BareJob().perform_later(opened.session.sync_session)
    async with async_orm(AsyncSession, "asyncpg")(database_url) as opened:
        queued = await opened.session.run_sync(lambda session: BareJob().perform_later(session))
        assert await queued.status(opened.session) == "not_started"
        await opened.end(True)
    assert count(tables, "bare_jobs") == 1


async def test_what_was_not_awaited_is_not_enqueued_and_python_says_so(
    tables: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        BareJob().perform_later(aconn)  # type: ignore[unused-coroutine]
    assert count(tables, "bare_jobs") == 0


def test_a_session_of_threads_enqueues_from_each_of_them(tables: psycopg.Connection, database_url: str) -> None:
    """psycopg's connections may be shared; what each thread does waits for the others."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        threads = [threading.Thread(target=lambda: BareJob().perform_later(connection)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert count(tables, "bare_jobs") == 8


# --- closed ---


async def test_a_closed_session_of_sqlalchemy_begins_anew_as_for_its_own_queries(
    tables: psycopg.Connection, database_url: str
) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database_url))
    session = Session(engine)
    session.close()
    BareJob().perform_later(session)
    session.commit()
    session.close()
    engine.dispose()
    assert count(tables, "bare_jobs") == 1


async def test_djangos_connection_that_is_closed_in_its_transaction_says_so(
    tables: psycopg.Connection, database_url: str
) -> None:
    async with KINDS["django"](database_url) as opened:
        opened.close()
        with pytest.raises(DjangoError, match="closed"):
            BareJob().perform_later(opened.session)


# --- nobody serves it ---


@pytest.mark.parametrize(
    ("known_class", "said"), [("OtherJob", "no node that runs knows BareJob"), ("BareJob", "no node has taken it")]
)
def test_waiting_says_whether_any_node_serves_the_table(
    tables: psycopg.Connection, known_class: str, said: str
) -> None:
    tables.execute(
        "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)"
        " VALUES (gen_random_uuid(), 'here', 1, '0', '{*}', ARRAY[%s::text], now(), 1)",
        [known_class],
    )
    with pytest.raises(WaitTimeoutError, match=said):
        BareJob().perform_later(tables).wait(tables, timedelta(seconds=0.05))


def test_an_enqueuer_that_may_not_see_the_nodes_waits_all_the_same(
    tables: psycopg.Connection, database_url: str
) -> None:
    queued = BareJob().perform_later(tables)
    tables.execute("CREATE ROLE waits_in_vain LOGIN")
    try:
        tables.execute("GRANT SELECT ON bare_jobs TO waits_in_vain")
        as_enqueuer = psycopg.conninfo.make_conninfo(database_url, user="waits_in_vain")
        with (
            psycopg.connect(as_enqueuer, autocommit=True) as connection,
            pytest.raises(WaitTimeoutError, match="no node has taken it"),
        ):
            queued.wait(connection, timedelta(seconds=0.05))
    finally:
        tables.execute("DROP OWNED BY waits_in_vain; DROP ROLE waits_in_vain")
