"""Enqueueing from Python: on connections of the caller, and on the pools of clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID, uuid4

import psycopg
import psycopg_pool
import pydantic
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from cluster import AsyncClient, Client, Job, References, configure
from cluster.errors import EnqueueError
from cluster.job import definition
from cluster.migration import migrate_jobs


class MailJob(Job):
    customer_id: int
    subject: str = "hello"

    queue = "mail"
    priority = 20

    def perform(self) -> None: ...


class BareJob(Job):
    def perform(self) -> None: ...


class Colour(Enum):
    RED = "red"


class Address(pydantic.BaseModel):
    street: str
    since: date


class EveryTypeJob(Job):
    flag: bool
    number: int
    ratio: float
    text: str
    amount: Decimal
    moment: datetime
    day: date
    hour: clock_time
    span: timedelta
    key: UUID
    blob: bytes
    colour: Colour
    tags: list[str]
    address: Address
    nothing: int | None = None

    def perform(self) -> None: ...


EVERY_TYPE = EveryTypeJob(
    flag=True,
    number=2**62,
    ratio=1.5,
    text="tab\t, newline\n, backslash \\N \\. and ä€😀 with 'quotes\" %s {}",
    amount=Decimal("12.345"),
    moment=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    day=date(2026, 1, 2),
    hour=clock_time(3, 4, 5),
    span=timedelta(days=1, seconds=2, microseconds=3),
    key=uuid4(),
    blob=b"\x00\xff\\x",
    colour=Colour.RED,
    tags=["a", "ä\t"],
    address=Address(street="a", since=date(2026, 1, 2)),
)


class NarrowJob(Job):
    number: int
    colour: Colour

    def perform(self) -> None: ...


class LinkedJob(Job):
    customer_id: Annotated[int, References("customers.id")]
    level: Annotated[int, pydantic.Field(ge=1)] = 1

    def perform(self) -> None: ...


@pytest.fixture
def tables(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute("CREATE TABLE customers (id integer PRIMARY KEY)")
    conn.execute("INSERT INTO customers VALUES (1)")
    migrate_jobs(conn, [MailJob, BareJob, EveryTypeJob, LinkedJob])
    return conn


def rows(conn: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return conn.execute(query.encode()).fetchall()


# --- one job ---


def test_a_job_becomes_a_row_with_the_classs_queue_and_priority(tables: psycopg.Connection) -> None:
    job = MailJob(customer_id=42)
    queued = job.perform_later(tables)
    assert rows(tables, "SELECT id, customer_id, subject, queue, priority, status::text FROM mail_jobs") == [
        (queued.id, 42, "hello", "mail", 20, "not_started")
    ]
    assert job.id is None
    assert queued == job
    assert queued.row is None


def test_queue_and_priority_may_be_given_per_job(tables: psycopg.Connection) -> None:
    MailJob(customer_id=1).perform_later(tables, queue="slow", priority=99)
    assert rows(tables, "SELECT queue, priority FROM mail_jobs") == [("slow", 99)]


def test_a_delay_counts_from_the_databases_clock(tables: psycopg.Connection) -> None:
    MailJob(customer_id=1).perform_later(tables, delay=timedelta(hours=1))
    MailJob(customer_id=2).perform_later(tables, delay=timedelta(0))
    assert rows(tables, "SELECT status::text, run_at - created_at FROM mail_jobs ORDER BY customer_id") == [
        ("scheduled", timedelta(hours=1)),
        ("not_started", timedelta(0)),
    ]


def test_run_at_is_kept_to_the_microsecond(tables: psycopg.Connection) -> None:
    moment = datetime(2100, 1, 2, 3, 4, 5, 678901, UTC)
    MailJob(customer_id=1).perform_later(tables, run_at=moment)
    assert rows(tables, "SELECT status::text, run_at FROM mail_jobs") == [("scheduled", moment)]


def test_a_job_without_fields_can_be_enqueued(tables: psycopg.Connection) -> None:
    BareJob().perform_later(tables)
    BareJob().perform_later(tables, delay=timedelta(hours=1))
    assert BareJob.perform_many(tables, [BareJob(), BareJob()]) == 2
    assert rows(tables, "SELECT status::text FROM bare_jobs ORDER BY id") == [
        ("not_started",),
        ("scheduled",),
        ("not_started",),
        ("not_started",),
    ]


def test_a_job_is_part_of_the_callers_transaction(tables: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url) as caller:
        MailJob(customer_id=1).perform_later(caller)
        MailJob.perform_many(caller, [MailJob(customer_id=2)])
        assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(0,)]
        caller.rollback()
        assert caller.execute("SELECT count(*) FROM mail_jobs").fetchone() == (0,)


async def test_an_async_connection_gives_an_awaitable(
    tables: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    queued = await MailJob(customer_id=1).perform_later(aconn, delay=timedelta(hours=1))
    assert await MailJob.perform_many(aconn, [MailJob(customer_id=2)], run_at=datetime(2100, 1, 1, tzinfo=UTC)) == 1
    assert queued.id == 1
    assert rows(tables, "SELECT customer_id, status::text FROM mail_jobs ORDER BY id") == [
        (1, "scheduled"),
        (2, "scheduled"),
    ]  # fmt: skip


@pytest.mark.parametrize("many", [False, True])
def test_every_type_of_field_arrives_as_it_was(tables: psycopg.Connection, many: bool) -> None:
    if many:
        EveryTypeJob.perform_many(tables, [EVERY_TYPE])
    else:
        EVERY_TYPE.perform_later(tables)
    with tables.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM every_type_jobs").fetchone()
    assert row is not None
    assert EveryTypeJob(**{name: row[name] for name in definition(EveryTypeJob).column_names}) == EVERY_TYPE


@pytest.mark.parametrize("many", [False, True])
def test_columns_narrower_than_the_class_take_what_fits(conn: psycopg.Connection, many: bool) -> None:
    conn.execute("CREATE TYPE colour AS ENUM ('red', 'blue')")
    conn.execute("CREATE TABLE narrow_jobs (number smallint NOT NULL, colour colour NOT NULL)")
    migrate_jobs(conn, [NarrowJob])
    job = NarrowJob(number=3, colour=Colour.RED)
    if many:
        NarrowJob.perform_many(conn, [job])
    else:
        job.perform_later(conn)
    assert rows(conn, "SELECT number, colour::text FROM narrow_jobs") == [(3, "red")]


def test_connections_with_other_cursors_and_rows_work(tables: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url, row_factory=dict_row, cursor_factory=psycopg.RawCursor) as caller:
        assert MailJob(customer_id=1).perform_later(caller).id == 1
        assert MailJob.perform_many(caller, [MailJob(customer_id=2)], delay=timedelta(0)) == 1


def test_odd_table_names_are_quoted(conn: psycopg.Connection) -> None:
    odd: Any = type(
        "OddJob",
        (Job,),
        {"__annotations__": {"order": int}, "table": 'Odd "50%s" {x}', "perform": lambda self: None},
    )
    migrate_jobs(conn, [odd])
    assert odd(order=1).perform_later(conn).id == 1
    assert odd.perform_many(conn, [odd(order=1)]) == 1


# --- many jobs ---


def test_fifty_thousand_jobs_go_in_at_once(tables: psycopg.Connection) -> None:
    began = time.perf_counter()
    assert MailJob.perform_many(tables, (MailJob(customer_id=i) for i in range(50_000))) == 50_000
    assert time.perf_counter() - began < 20
    assert rows(tables, "SELECT count(*), min(queue), sum(customer_id)::bigint FROM mail_jobs") == [
        (50_000, "mail", 50_000 * 49_999 // 2)
    ]


def test_no_jobs_are_no_rows(tables: psycopg.Connection) -> None:
    assert MailJob.perform_many(tables, []) == 0


def test_many_jobs_take_one_time_queue_and_priority(tables: psycopg.Connection) -> None:
    jobs = [MailJob(customer_id=i) for i in range(3)]
    MailJob.perform_many(tables, jobs, delay=timedelta(hours=1), queue="slow", priority=7)
    assert rows(tables, "SELECT DISTINCT queue, priority, status::text, run_at - created_at FROM mail_jobs") == [
        ("slow", 7, "scheduled", timedelta(hours=1))
    ]


def test_jobs_may_be_made_from_rows_read_on_the_same_connection(tables: psycopg.Connection) -> None:
    with tables.transaction(), tables.cursor("customers_to_mail") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT generate_series(1, 1000)")
        assert MailJob.perform_many(tables, (MailJob(customer_id=i) for (i,) in cursor)) == 1000


@pytest.mark.parametrize("given", [list, tuple, iter])
def test_jobs_may_be_given_in_any_iterable(tables: psycopg.Connection, given: Callable[[list[MailJob]], Any]) -> None:
    jobs = [MailJob(customer_id=i) for i in range(10_001)]
    assert MailJob.perform_many(tables, given(jobs)) == 10_001
    assert rows(tables, "SELECT count(*), sum(customer_id)::bigint FROM mail_jobs") == [(10_001, 10_000 * 10_001 // 2)]


@pytest.mark.parametrize("given", [list, iter])
@pytest.mark.parametrize("wrong", [BareJob(), "a job", MailJob, None])
def test_one_wrong_job_among_many_leaves_no_row(
    tables: psycopg.Connection, wrong: Any, given: Callable[[list[Any]], Any]
) -> None:
    jobs = [*(MailJob(customer_id=i) for i in range(10_001)), wrong]
    with pytest.raises(EnqueueError, match="perform_many of MailJob got"):
        MailJob.perform_many(tables, given(jobs))
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(0,)]


def test_an_error_of_the_generator_reaches_the_caller(tables: psycopg.Connection) -> None:
    def jobs() -> Iterator[MailJob]:
        yield MailJob(customer_id=1)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        MailJob.perform_many(tables, jobs())
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(0,)]


# --- refusals ---


def test_perform_many_needs_an_iterable_of_jobs(tables: psycopg.Connection) -> None:
    with pytest.raises(EnqueueError, match="takes an iterable of MailJob"):
        MailJob.perform_many(tables, MailJob(customer_id=1))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"delay": timedelta(1), "run_at": datetime(2100, 1, 1, tzinfo=UTC)}, "delay or run_at, not both"),
        ({"run_at": datetime(2100, 1, 1)}, "has no time zone: add one"),  # noqa: DTZ001 - what is refused
        ({"run_at": "tomorrow"}, "run_at is a datetime with a time zone"),
        ({"run_at": date(2100, 1, 1)}, "run_at is a datetime with a time zone"),
        ({"delay": timedelta(seconds=-1)}, "delay is a timedelta of zero or more"),
        ({"delay": 60}, "delay is a timedelta of zero or more"),
    ],
)
def test_a_time_that_is_none_is_refused(conn: psycopg.Connection, arguments: Any, said: str) -> None:
    with pytest.raises(EnqueueError, match=said):
        MailJob(customer_id=1).perform_later(conn, **arguments)
    with pytest.raises(EnqueueError, match=said):
        MailJob.perform_many(conn, [], **arguments)


def _foreign(module: str, name: str) -> object:
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        (_foreign("sqlalchemy.engine.base", "Engine"), r"with engine\.begin\(\) as connection"),
        (_foreign("asyncpg.pool", "Pool"), r"async with pool\.acquire\(\) as connection"),
        (_foreign("psycopg2.extensions", "connection"), r"cursor\.execute\(\*job\.insert\(\)\)"),
        (psycopg_pool.ConnectionPool("", open=False), r"with pool\.connection\(\) as connection"),
        (Client(""), r"client\.enqueue\(job\)"),
        ("postgresql://db/app", "pass a connection of psycopg, SQLAlchemy, Django or asyncpg"),
        (None, "pass a connection of psycopg, SQLAlchemy, Django or asyncpg"),
    ],
)  # fmt: skip
def test_what_nothing_can_be_enqueued_on_is_refused(connection: Any, said: str) -> None:
    with pytest.raises(EnqueueError, match=said):
        MailJob(customer_id=1).perform_later(connection)
    with pytest.raises(EnqueueError, match=said):
        MailJob.perform_many(connection, [])


def test_a_closed_connection_is_refused(conn: psycopg.Connection) -> None:
    conn.close()
    with pytest.raises(EnqueueError, match="connection is closed"):
        MailJob(customer_id=1).perform_later(conn)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_postgres_cannot_keep_is_refused(tables: psycopg.Connection, text: str) -> None:
    # pydantic refuses surrogates before we do, except where a validator is not asked.
    job = MailJob(customer_id=1)
    vars(job)["subject"] = text
    with pytest.raises(EnqueueError, match=r"MailJob\.subject can't be stored"):
        job.perform_later(tables)
    with pytest.raises(EnqueueError, match=r"MailJob\.subject can't be stored"):
        MailJob.perform_many(tables, [job])
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(0,)]


def test_what_the_database_refuses_comes_as_its_own_error(tables: psycopg.Connection) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        LinkedJob(customer_id=2).perform_later(tables)
    with pytest.raises(errors.ForeignKeyViolation):
        LinkedJob.perform_many(tables, [LinkedJob(customer_id=1), LinkedJob(customer_id=2)])
    with pytest.raises(errors.CheckViolation):
        LinkedJob(customer_id=1).perform_later(tables, priority=101)
    with pytest.raises(errors.CheckViolation):
        LinkedJob(customer_id=1).perform_later(tables, queue="")
    assert rows(tables, "SELECT count(*) FROM linked_jobs") == [(0,)]


@pytest.mark.parametrize("table", ["missing_jobs", "no_such_schema.missing_jobs"])
def test_a_missing_table_is_told_with_what_to_do(conn: psycopg.Connection, table: str) -> None:
    missing: Any = type("MissingJob", (Job,), {"table": table, "perform": lambda self: None})
    said = f"table {table} does not exist: run `cluster migrate`"
    with pytest.raises(EnqueueError, match=said):
        missing().perform_later(conn)
    with pytest.raises(EnqueueError, match=said):
        missing.perform_many(conn, [missing()])


def test_a_missing_column_is_told_with_what_to_do(conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.create_job_table('mail_jobs')")
    with pytest.raises(EnqueueError, match=r'column "customer_id" .* does not exist: run `cluster migrate`'):
        MailJob(customer_id=1).perform_later(conn)


def test_a_fault_in_a_users_trigger_is_not_taken_for_a_missing_table(tables: psycopg.Connection) -> None:
    tables.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO audit_log VALUES (NEW.id); RETURN NEW; END $$"
    )
    tables.execute("CREATE TRIGGER audit BEFORE INSERT ON mail_jobs FOR EACH ROW EXECUTE FUNCTION audit()")
    with pytest.raises(errors.UndefinedTable):
        MailJob(customer_id=1).perform_later(tables)


def test_a_row_that_a_trigger_discards_is_told(tables: psycopg.Connection) -> None:
    tables.execute("CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")
    tables.execute("CREATE TRIGGER drop_row BEFORE INSERT ON mail_jobs FOR EACH ROW EXECUTE FUNCTION drop_row()")
    with pytest.raises(EnqueueError, match="trigger of table mail_jobs discarded"):
        MailJob(customer_id=1).perform_later(tables)
    assert MailJob.perform_many(tables, [MailJob(customer_id=1)]) == 0


# --- clients ---


@pytest.fixture
def client(tables: psycopg.Connection, database_url: str) -> Iterator[Client]:
    with Client(database_url, max_size=2) as opened:
        yield opened


@pytest.fixture
async def async_client(tables: psycopg.Connection, database_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(database_url, max_size=2) as opened:
        yield opened


def test_a_client_commits_each_job(client: Client, tables: psycopg.Connection) -> None:
    assert client.enqueue(MailJob(customer_id=1), delay=timedelta(hours=1)).id == 1
    assert client.enqueue_many(MailJob(customer_id=i) for i in range(3)) == 3
    assert client.enqueue_many([]) == 0
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(4,)]


def test_a_clients_transaction_ends_with_its_block(client: Client, tables: psycopg.Connection) -> None:
    with client.connection() as connection:
        MailJob(customer_id=1).perform_later(connection)
        assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(0,)]
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(1,)]
    with suppress(LookupError), client.connection() as connection:
        MailJob(customer_id=2).perform_later(connection)
        raise LookupError
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(1,)]


def test_a_client_prepares_no_statements(client: Client) -> None:
    for i in range(10):
        client.enqueue(MailJob(customer_id=i))
    with client.connection() as connection:
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_client_survives_the_loss_of_its_connections(client: Client, tables: psycopg.Connection) -> None:
    client.enqueue(MailJob(customer_id=1))
    tables.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    assert client.enqueue(MailJob(customer_id=2)).customer_id == 2


@pytest.mark.parametrize("wrong", [MailJob, "a job", None])
def test_a_client_takes_only_jobs(wrong: Any) -> None:
    client = Client("")
    with pytest.raises(EnqueueError, match="enqueue takes a job"):
        client.enqueue(wrong)
    with pytest.raises(EnqueueError, match="enqueue_many takes a job"):
        client.enqueue_many([wrong])
    with pytest.raises(EnqueueError, match="enqueue_many takes an iterable of jobs"):
        client.enqueue_many(MailJob(customer_id=1))  # type: ignore[arg-type]


def test_a_client_takes_its_database_from_configure_then_from_the_environment(
    tables: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.configuration._database_url", None)
    monkeypatch.setenv("CLUSTER_DATABASE_URL", database_url)
    with Client() as client:
        client.enqueue(MailJob(customer_id=1))
    monkeypatch.setenv("CLUSTER_DATABASE_URL", "postgresql://nowhere.invalid/app")
    configure(database_url=database_url)
    client = Client()
    client.enqueue(MailJob(customer_id=2))  # opened by its first use
    client.close()
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(2,)]


async def test_an_async_client_commits_each_job(async_client: AsyncClient, tables: psycopg.Connection) -> None:
    assert (await async_client.enqueue(MailJob(customer_id=1))).id == 1
    assert await async_client.enqueue_many(MailJob(customer_id=i) for i in range(3)) == 3
    assert await async_client.enqueue_many([]) == 0
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(4,)]


async def test_an_async_clients_transaction_ends_with_its_block(
    async_client: AsyncClient, tables: psycopg.Connection
) -> None:
    with suppress(LookupError):
        async with async_client.connection() as connection:
            await MailJob(customer_id=1).perform_later(connection)
            raise LookupError
    async with async_client.connection() as connection:
        await MailJob(customer_id=2).perform_later(connection)
    assert rows(tables, "SELECT customer_id FROM mail_jobs") == [(2,)]


async def test_an_async_client_is_shared_by_many_tasks(async_client: AsyncClient, tables: psycopg.Connection) -> None:
    await asyncio.gather(*(async_client.enqueue(MailJob(customer_id=i)) for i in range(20)))
    assert rows(tables, "SELECT count(*) FROM mail_jobs") == [(20,)]
