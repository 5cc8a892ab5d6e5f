"""Enqueueing on what the application has at hand, in its transaction: the same on every kind of connection and session."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID, uuid4

import psycopg
import psycopg2
import pydantic
import pytest
import sqlalchemy
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from cluster import Job, References, enqueueing
from cluster.errors import EnqueueError, WaitTimeoutError
from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.session_kinds import KINDS, Kind, settled, socket_file


class Colour(Enum):
    RED = "red"


class Address(pydantic.BaseModel):
    street: str
    since: date


class MailJob(Job):
    customer_id: Annotated[int, References("customers.id")]
    text: str = "hello"
    flag: bool = True
    ratio: float = 1.5
    amount: Decimal = Decimal("12.345")
    moment: datetime = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    day: date = date(2026, 1, 2)
    hour: clock_time = clock_time(3, 4, 5)
    span: timedelta = timedelta(days=1, seconds=2, microseconds=3)
    key: UUID | None = None
    blob: bytes = b""
    colour: Colour = Colour.RED
    tags: list[str] = pydantic.Field(default_factory=list)
    address: Address | None = None

    queue = "mail"

    def perform(self) -> None: ...


class BareJob(Job):
    table = "bare 100% jobs"

    def perform(self) -> None: ...


class QuickJob(Job):
    async def perform(self) -> None: ...


class MissingJob(Job):
    number: int

    def perform(self) -> None: ...


EVERY_VALUE: dict[str, Any] = {
    "text": "tab\t, newline\n, backslash \\N \\. and ä€😀 with 'quotes\" %s {} $1 :x",
    "flag": False,
    "ratio": float("inf"),
    "amount": Decimal("-0.001"),
    "span": timedelta(days=-1, seconds=2, microseconds=3),
    "key": uuid4(),
    "blob": b"\x00\xff\\x",
    "tags": ["a", "ä\t", "null"],
    "address": Address(street="a", since=date(2026, 1, 2)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(
    params=[
        "core-psycopg2",
        "core-pg8000",
        "session-psycopg",
        "async-core-psycopg",
        "async-session-asyncpg",
        "django",
        "asyncpg",
    ]
)
def each_adapter(request: pytest.FixtureRequest) -> Kind:
    """One kind for each way in which statements are sent and errors come back, besides psycopg's own."""
    return KINDS[request.param]


@pytest.fixture
def tables(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute("CREATE TABLE customers (id integer PRIMARY KEY)")
    migrate_jobs(conn, [MailJob, BareJob])
    return conn


def rows(conn: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return conn.execute(query.encode()).fetchall()


async def test_a_job_is_committed_with_the_row_that_it_is_about(
    tables: psycopg.Connection, database_url: str, kind: Kind
) -> None:
    async with kind(database_url) as opened:
        await settled(opened.execute("INSERT INTO customers VALUES (42)"))
        queued = await settled(MailJob(customer_id=42, **EVERY_VALUE).perform_later(opened.session))
        bare = await settled(BareJob().perform_later(opened.session))
        assert rows(tables, "SELECT id FROM mail_jobs") == []
        await settled(opened.end(True))
    assert bare.id == 1
    assert rows(tables, "SELECT id, queue, priority, status::text, tags FROM mail_jobs") == [
        (queued.id, "mail", 50, "not_started", EVERY_VALUE["tags"])
    ]
    for name, value in EVERY_VALUE.items():
        if name not in {"tags", "address"}:
            assert rows(tables, f"SELECT {name} FROM mail_jobs") == [(value,)]


async def test_a_rollback_takes_the_jobs_with_it(tables: psycopg.Connection, database_url: str, kind: Kind) -> None:
    async with kind(database_url) as opened:
        await settled(opened.execute("INSERT INTO customers VALUES (42)"))
        await settled(MailJob(customer_id=42).perform_later(opened.session))
        await settled(MailJob.perform_many(opened.session, [MailJob(customer_id=42)]))
        await settled(opened.end(False))
    assert rows(tables, "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM mail_jobs)") == [(0, 0)]


async def test_many_jobs_and_their_time_queue_and_priority(
    tables: psycopg.Connection, database_url: str, kind: Kind
) -> None:
    tables.execute("INSERT INTO customers SELECT generate_series(1, 20)")
    at = datetime(2100, 1, 1, tzinfo=UTC)
    async with kind(database_url) as opened:
        jobs = (MailJob(customer_id=i) for i in range(1, 21))
        later = timedelta(days=1, seconds=0.5)
        many = await settled(MailJob.perform_many(opened.session, jobs, delay=later, queue="slow"))
        await settled(MailJob(customer_id=1).perform_later(opened.session, delay=later, priority=7))
        await settled(MailJob(customer_id=2).perform_later(opened.session, run_at=at))
        bare = await settled(BareJob.perform_many(opened.session, [BareJob(), BareJob()]))
        await settled(opened.end(True))
    assert (many, bare) == (20, 2)
    assert rows(tables, "SELECT queue, priority, run_at - created_at, count(*) FROM mail_jobs WHERE run_at < '2100-01-01'"
                " GROUP BY 1, 2, 3 ORDER BY 1") == [("mail", 7, later, 1), ("slow", 50, later, 20)]  # fmt: skip
    assert rows(tables, "SELECT run_at, status::text FROM mail_jobs ORDER BY id DESC LIMIT 1") == [(at, "scheduled")]


async def test_what_does_not_fit_is_refused(tables: psycopg.Connection, database_url: str, each_adapter: Kind) -> None:
    tables.execute("ALTER TABLE mail_jobs DROP COLUMN ratio")
    async with each_adapter(database_url) as opened:
        with pytest.raises(EnqueueError, match=r"MailJob\.text can't be stored"):
            await settled(MailJob(customer_id=1, text="a\0b").perform_later(opened.session))
        wrong: Any = [BareJob()]
        with pytest.raises(EnqueueError, match="perform_many of MailJob got a BareJob"):
            await settled(MailJob.perform_many(opened.session, wrong))
        with pytest.raises(EnqueueError, match="table missing_jobs does not exist: run `cluster migrate`"):
            await settled(MissingJob(number=1).perform_later(opened.session))
    async with each_adapter(database_url) as opened:
        with pytest.raises(EnqueueError, match=r'column "ratio" .* does not exist: run `cluster migrate`'):
            await settled(MailJob(customer_id=1).perform_later(opened.session))


async def test_what_the_database_refuses_comes_as_the_error_of_the_sessions_library(
    tables: psycopg.Connection, database_url: str, each_adapter: Kind
) -> None:
    async with each_adapter(database_url) as opened:
        with pytest.raises(Exception, match="violates foreign key constraint") as caught:
            await settled(MailJob(customer_id=1).perform_later(opened.session))
        library = type(opened.session).__module__.partition(".")[0]
        assert type(caught.value).__module__.startswith("sqlalchemy" if library == "sqlmodel" else library)
        assert enqueueing.said_by_postgres(caught.value).sqlstate == "23503"


async def test_traces_go_through_every_adapter(
    tables: psycopg.Connection, database_url: str, each_adapter: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueueing, "_takes_traces", {})
    tables.execute('ALTER TABLE "bare 100% jobs" ADD COLUMN traceparent text')
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        async with each_adapter(database_url) as opened:
            await settled(BareJob().perform_later(opened.session))
            await settled(BareJob.perform_many(opened.session, [BareJob()]))
            await settled(opened.end(True))
    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    found = rows(tables, "SELECT split_part(traceparent, '-', 2) FROM \"bare 100% jobs\"")
    assert found == [(trace_id,), (trace_id,)]


async def test_a_job_is_looked_at_cancelled_and_retried_on_every_kind(
    tables: psycopg.Connection, database_url: str, kind: Kind
) -> None:
    async with kind(database_url) as opened:
        queued = await settled(BareJob().perform_later(opened.session))
        assert await settled(queued.status(opened.session)) == "not_started"
        with pytest.raises(EnqueueError, match="commit first: no node sees the job"):
            await settled(queued.wait(opened.session, timedelta(seconds=1)))
        assert await settled(queued.cancel(opened.session)) == "cancelled"
        assert await settled(queued.retry(opened.session)) == "not_started"
        assert await settled(queued.cancel(opened.session)) == "cancelled"
        await settled(opened.end(True))
        assert rows(tables, 'SELECT status::text FROM "bare 100% jobs"') == [("cancelled",)]
        assert await settled(queued.wait(opened.session, timedelta(seconds=9))) == "cancelled"
        tables.execute('DELETE FROM "bare 100% jobs"')
        assert await settled(queued.wait(opened.session, timedelta(seconds=9))) is None


@pytest.mark.parametrize("closed", ["psycopg", "psycopg-async", "core-psycopg", "async-core-asyncpg", "asyncpg"])
async def test_a_closed_connection_is_refused(tables: psycopg.Connection, database_url: str, closed: str) -> None:
    async with KINDS[closed](database_url) as opened:
        await settled(opened.close())
        with pytest.raises(EnqueueError, match="the connection is closed: pass an open one"):
            await settled(BareJob().perform_later(opened.session))


# --- SQLAlchemy ---


class Base(DeclarativeBase): ...


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)


def engine(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=sqlalchemy.NullPool
    )


def test_what_a_session_has_not_written_yet_is_written_before_the_job(
    tables: psycopg.Connection, database_url: str
) -> None:
    with Session(engine(database_url)) as session, session.begin():
        session.add(Customer(id=42))
        MailJob(customer_id=42).perform_later(session)
    assert rows(tables, "SELECT customer_id FROM mail_jobs") == [(42,)]


def test_a_savepoint_takes_only_its_own_jobs_with_it(tables: psycopg.Connection, database_url: str) -> None:
    with Session(engine(database_url)) as session, session.begin():
        BareJob().perform_later(session)
        with session.begin_nested() as savepoint:
            BareJob().perform_later(session)
            savepoint.rollback()
    assert rows(tables, 'SELECT id FROM "bare 100% jobs"') == [(1,)]


def test_an_engine_in_autocommit_commits_at_once(tables: psycopg.Connection, database_url: str) -> None:
    with engine(database_url).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        BareJob().perform_later(connection)
        assert rows(tables, 'SELECT id FROM "bare 100% jobs"') == [(1,)]


def test_another_database_than_postgres_is_refused() -> None:
    with (
        Session(sqlalchemy.create_engine("sqlite://")) as session,
        pytest.raises(EnqueueError, match="jobs are rows in Postgres: this is a connection to sqlite"),
    ):
        BareJob().perform_later(session)


# --- other drivers ---


def test_psycopg2_and_pg8000_execute_the_statement_of_a_job(tables: psycopg.Connection, database_url: str) -> None:
    import pg8000.dbapi

    tables.execute("INSERT INTO customers VALUES (42)")
    given = conninfo_to_dict(database_url)
    pg8000_connection = pg8000.dbapi.connect(
        given["user"], password=given.get("password"), database=given["dbname"], unix_sock=socket_file(database_url)
    )
    for connection in (psycopg2.connect(database_url), pg8000_connection):
        cursor = connection.cursor()
        cursor.execute(*MailJob(customer_id=42, **EVERY_VALUE).insert(delay=timedelta(hours=1)))
        assert cursor.fetchone()[0] > 0
        cursor.execute(*BareJob().insert())
        connection.commit()
        connection.close()
    assert rows(tables, "SELECT DISTINCT blob, span, run_at - created_at FROM mail_jobs") == [
        (EVERY_VALUE["blob"], EVERY_VALUE["span"], timedelta(hours=1))
    ]
    assert rows(tables, 'SELECT (SELECT count(*) FROM mail_jobs), (SELECT count(*) FROM "bare 100% jobs")') == [(2, 2)]  # fmt: skip


def test_a_statement_may_have_numbered_placeholders(tables: psycopg.Connection) -> None:
    statement, values = BareJob().insert("$1", queue="q")
    assert "%" not in statement
    assert len(values) == statement.count("$") == 1
    with pytest.raises(EnqueueError, match=r'placeholder is "%s" or "\$1"'):
        BareJob().insert("?")  # type: ignore[arg-type]


# --- what became of a job ---


def test_waiting_sees_a_job_finish(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node("from cluster import Job\nclass QuickJob(Job):\n    async def perform(self): ...")
    assert QuickJob().perform_later(conn).wait(conn, timedelta(seconds=20)) == "succeeded"


@pytest.mark.parametrize(
    ("delay", "said"),
    [
        (None, "is not_started after 0.05 s: no node that runs knows BareJob; `cluster status` shows"),
        (timedelta(hours=1), "is scheduled after 0.05 s: it is not due yet"),
    ],
)
def test_waiting_in_vain_says_why(tables: psycopg.Connection, delay: timedelta | None, said: str) -> None:
    queued = BareJob().perform_later(tables, delay=delay)
    with pytest.raises(WaitTimeoutError, match=said):
        queued.wait(tables, timedelta(seconds=0.05))
    with pytest.raises(EnqueueError, match="timeout is a timedelta above zero, not 5"):
        queued.wait(tables, 5)  # type: ignore[call-overload]


def test_a_job_that_was_not_enqueued_has_no_status(tables: psycopg.Connection) -> None:
    with pytest.raises(EnqueueError, match="this BareJob has no id: take what perform_later returns"):
        BareJob().status(tables)


def test_a_job_that_has_not_finished_is_not_retried(tables: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="is not_started, not finished"):
        BareJob().perform_later(tables).retry(tables)


def test_no_library_of_sessions_is_imported(database_url: str) -> None:
    source = (
        "import sys; from cluster import Client, Job\n"
        "class AJob(Job):\n    def perform(self): ...\n"
        f"with Client({database_url!r}) as client:\n"
        "    try: client.enqueue(AJob())\n"
        "    except Exception as error: print(error)\n"
        "print(sorted({'sqlalchemy', 'sqlmodel', 'django', 'asyncpg', 'psycopg2', 'pg8000', 'alembic'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=60)
    said, imported = ran.stdout.splitlines()
    assert "table a_jobs does not exist: run `cluster migrate`" in said
    assert imported == "[]"
