"""`cluster.testing`: draining, travelling, performing one job, and jobs that must not be run twice."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pydantic
import pytest
import sqlalchemy

from cluster import Cancel, ConstantBackoff, Cron, Every, Fail, Job, Snooze, migrate
from cluster.errors import ClusterError
from cluster.testing import assert_repeatable, drain, perform_job, travel

DAY = timedelta(days=1)
BERLIN = ZoneInfo("Europe/Berlin")


def value(connection: psycopg.Connection, query: str) -> Any:  # Any: whatever the query selects
    """Of the first column of the only row."""
    ((found,),) = connection.execute(query.encode()).fetchall()
    return found


class Ran:
    """What jobs of a test have done: they run in its process."""

    def __init__(self) -> None:
        self.calls: list[Any] = []


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Emptied for each test."""
    monkeypatch.setattr(RAN, "calls", [])
    return RAN.calls


RAN = Ran()


class PlainJob(Job):
    table = "drained_plain_jobs"
    number: int
    max_concurrency = None

    def perform(self) -> None:
        assert self.row is not None
        RAN.calls.append((self.number, self.attempt, self.row.queue))


class AsyncJob(Job):
    table = "drained_async_jobs"
    takes: timedelta = timedelta(0)
    timeout = timedelta(milliseconds=50)
    max_attempts = 1

    async def perform(self) -> None:
        await asyncio.sleep(self.takes.total_seconds())
        RAN.calls.append("async")


class FlakyJob(Job):
    table = "drained_flaky_jobs"
    backoff = ConstantBackoff(timedelta(minutes=10))
    concurrency_key = "customer"
    max_concurrency = 1
    customer: str

    def perform(self) -> None:
        RAN.calls.append(self.attempt)
        if self.attempt is None or self.attempt < 3:
            raise ConnectionError("the mail server is away")


class EndsJob(Job):
    table = "drained_ends_jobs"
    retention = timedelta(0)
    end: str

    def perform(self) -> Any:
        return {"snooze": Snooze(DAY), "cancel": Cancel("no more"), "fail": Fail("never"), "ok": None}[self.end]


class ChainJob(Job):
    table = "drained_chain_jobs"
    database: str
    left: int

    def perform(self) -> None:
        RAN.calls.append(self.left)
        with psycopg.connect(self.database) as connection:
            ChainJob(database=self.database, left=self.left - 1).perform_later(connection)


class ReportJob(Job):
    table = "drained_report_jobs"
    schedule = {"daily": Cron("0 5 * * *", time_zone="Europe/Berlin"), "often": Every(hours=10)}  # noqa: RUF012

    def perform(self) -> None:
        RAN.calls.append(self.scheduled_for)


# --- drain ---


def test_what_is_due_runs_here_and_is_told_in_order(
    ran: list[Any], conn: psycopg.Connection, database_url: str
) -> None:
    migrate(conn, [PlainJob])
    PlainJob(number=1).perform_later(conn, priority=60)
    PlainJob(number=2).perform_later(conn)
    PlainJob(number=3).perform_later(conn, queue="mail", priority=1)
    PlainJob(number=4).perform_later(conn, delay=timedelta(hours=1))
    performed = drain(database_url)
    assert ran == [(2, 1, "default"), (1, 1, "default"), (3, 1, "mail")]
    assert [(one.job.id, one.attempt, one.status, one.error) for one in performed] == [
        (2, 1, "succeeded", None),
        (1, 1, "succeeded", None),
        (3, 1, "succeeded", None),
    ]
    assert value(conn, "SELECT status::text FROM drained_plain_jobs WHERE id = 4") == "scheduled"
    assert value(conn, "SELECT array_agg(state) FROM cluster.nodes") == ["stopped"]
    assert [one.job.id for one in drain(database_url, within=timedelta(hours=2))] == [4]


def test_retries_are_drained_when_time_is_given_and_keyed_limits_hold_nothing_up(
    ran: list[Any], conn: psycopg.Connection, database_url: str
) -> None:
    migrate(conn, [FlakyJob])
    for _ in range(2):
        FlakyJob(customer="a").perform_later(conn)
    assert [one.status for one in drain(database_url)] == ["retry", "retry"]
    rest = drain(database_url, within=timedelta(minutes=21))
    assert [(one.attempt, one.status) for one in rest] == [(2, "retry")] * 2 + [(3, "succeeded")] * 2
    assert "ConnectionError: the mail server is away" in (rest[0].error or "")


def test_every_end_of_a_job_is_that_of_a_node(conn: psycopg.Connection, database_url: str) -> None:
    migrate(conn, [EndsJob])
    for end in ("snooze", "cancel", "fail", "ok", "unknown"):
        EndsJob(end=end).perform_later(conn)
    statuses = [one.status for one in drain(database_url)]
    assert statuses == ["scheduled", "cancelled", "failed", "succeeded", "retry"]
    assert value(conn, "SELECT array_agg(status::text ORDER BY id) FROM drained_ends_jobs") == [
        "scheduled",
        "cancelled",
        "failed",
        "retry",
    ]


class PickyJob(Job):
    table = "drained_picky_jobs"
    text: str

    @pydantic.field_validator("text")
    @classmethod
    def not_bad(cls, value: str) -> str:
        if value == "bad":
            raise ValueError("that is bad")
        return value

    def perform(self) -> None: ...


def test_a_row_that_its_class_refuses_is_failed(conn: psycopg.Connection, database_url: str) -> None:
    migrate(conn, [PickyJob])
    conn.execute("INSERT INTO drained_picky_jobs (text) VALUES ('bad')")
    (performed,) = drain(database_url)
    assert (performed.job.id, performed.status) == (1, "failed")
    assert "the row does not fit its class" in (performed.error or "")


async def test_async_jobs_run_beside_the_loop_of_an_async_test_and_time_out(
    ran: list[Any], aconn: psycopg.AsyncConnection, conn: psycopg.Connection, database_url: str
) -> None:
    migrate(conn, [AsyncJob])
    await AsyncJob().perform_later(aconn)
    await AsyncJob(takes=timedelta(seconds=30)).perform_later(aconn)
    performed = drain(database_url)
    assert [one.status for one in performed] == ["succeeded", "timed_out"]
    assert ran == ["async"]


def test_a_transaction_that_is_rolled_back_takes_all_with_it(ran: list[Any], database_url: str) -> None:
    migrate(database_url, [PlainJob])
    with psycopg.connect(database_url) as connection:
        PlainJob(number=1).perform_later(connection, delay=timedelta(minutes=1))
        assert [one.status for one in drain(connection, within=DAY)] == ["succeeded"]
        assert ran
        connection.rollback()
        assert value(connection, "SELECT count(*) FROM drained_plain_jobs") == 0
        assert value(connection, "SELECT count(*) FROM cluster.nodes") == 0


def test_schedules_fire_by_their_own_clock_however_often_time_is_moved(
    ran: list[datetime], conn: psycopg.Connection, database_url: str
) -> None:
    migrate(conn, [ReportJob])
    conn.execute("DELETE FROM cluster.schedules WHERE name NOT LIKE '%daily'")
    drain(database_url, within=timedelta(days=2))
    drain(database_url, within=timedelta(days=1))
    assert len(ran) == 3
    assert {time.astimezone(BERLIN).strftime("%H:%M") for time in ran} == {"05:00"}
    assert [later - earlier >= timedelta(hours=23) for earlier, later in pairwise(ran)] == [True] * 2


def test_a_job_that_enqueues_itself_for_ever_is_named(
    ran: list[Any], conn: psycopg.Connection, database_url: str
) -> None:
    migrate(conn, [ChainJob])
    ChainJob(database=database_url, left=100).perform_later(conn)
    with pytest.raises(ClusterError, match="more than 5 attempts, 6 of ChainJob"):
        drain(database_url, limit=5)


def test_what_can_not_be_drained_is_said(conn: psycopg.Connection, database_url: str) -> None:
    migrate(conn, [PlainJob, AsyncJob])
    assert drain(database_url) == []
    with psycopg.connect(database_url) as connection:
        PlainJob(number=1).perform_later(connection)
        with pytest.raises(
            ClusterError, match="a transaction is open that has written to drained_plain_jobs: commit first"
        ):
            drain(database_url)
    conn.execute("SELECT cluster.create_job_table('stranger_jobs')")
    conn.execute(
        "INSERT INTO cluster.job_types (name, job_table) VALUES ('StrangerJob', 'stranger_jobs') ON CONFLICT DO NOTHING"
    )
    conn.execute("INSERT INTO stranger_jobs DEFAULT VALUES")
    with pytest.raises(ClusterError, match="jobs are due in stranger_jobs, and no class of it is imported"):
        drain(database_url)
    with pytest.raises(ClusterError, match="a URL or a psycopg connection, not a int"):
        drain(42)  # type: ignore[arg-type]


# --- one job ---


def test_one_job_runs_without_a_row_or_with_one(ran: list[Any], conn: psycopg.Connection, database_url: str) -> None:
    assert perform_job(EndsJob(end="cancel")) == Cancel("no more")
    with pytest.raises(ClusterError, match="table drained_ends_jobs does not exist: run `cluster migrate`"):
        perform_job(EndsJob(end="cancel"), database_url)
    with pytest.raises(ConnectionError):
        perform_job(FlakyJob(customer="a"))
    migrate(conn, [FlakyJob, PlainJob])
    failed = perform_job(FlakyJob(customer="a"), database_url)
    assert (failed.status, failed.attempt) == ("retry", 1)
    with pytest.raises(ClusterError, match="FlakyJob 1 can't be performed, it is retry: travel first"):
        perform_job(failed.job, database_url)
    travel(database_url, timedelta(minutes=10))
    assert perform_job(failed.job, database_url).attempt == 2
    PlainJob(number=1).perform_later(conn)
    perform_job(PlainJob(number=2), conn)
    assert [call for call in ran if isinstance(call, tuple)] == [(2, 1, "default")]
    job = PlainJob(number=2)
    job.id = 2
    with pytest.raises(ClusterError, match="PlainJob 2 can't be performed, it is succeeded"):
        perform_job(job, conn)


async def test_one_async_job_runs_within_a_running_loop(ran: list[Any]) -> None:
    perform_job(AsyncJob())
    assert ran == ["async"]


# --- travel ---


def test_who_travels_finds_rows_older_and_schedules_nearer(conn: psycopg.Connection, database_url: str) -> None:
    migrate(conn, [PlainJob, ReportJob])
    PlainJob(number=1).perform_later(conn)
    drain(database_url)
    PlainJob(number=2).perform_later(conn, delay=DAY)
    travel(conn, DAY)
    assert value(conn, "SELECT status::text FROM drained_plain_jobs WHERE id = 2") == "not_started"
    assert value(conn, "SELECT now() - finished_at > '1 day' FROM drained_plain_jobs WHERE id = 1") is True
    assert value(conn, "SELECT next_due_at < now() FROM cluster.schedules WHERE name LIKE '%often'") is True
    with pytest.raises(ClusterError, match="nobody travels back"):
        travel(conn, -DAY)


# --- what must not be run twice ---


@pytest.fixture
def bank(conn: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Accounts, and what was booked."""
    conn.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL DEFAULT 0)")
    conn.execute(
        "CREATE TABLE bookings (id serial PRIMARY KEY, account int REFERENCES accounts, job bigint UNIQUE, at timestamptz)"
    )
    conn.execute("INSERT INTO accounts SELECT generate_series(1, 3)")
    migrate(conn, [OnceJob, TwiceJob, CommitsJob, EngineJob, ForeignJob])
    monkeypatch.setenv("BANK_URL", database_url)
    return database_url


class OnceJob(Job):
    """Says in the same transaction that it has done it."""

    table = "drained_once_jobs"
    database: str

    def perform(self) -> None:
        with psycopg.connect(self.database) as connection:
            new = connection.execute(
                "INSERT INTO bookings (account, job, at) VALUES (1, %s, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING 1",
                [self.id],
            ).fetchone()
            if new is not None:
                connection.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 1")


class TwiceJob(Job):
    table = "drained_twice_jobs"
    database: str

    async def perform(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.database) as connection:
            await connection.execute("SELECT 1")
            await connection.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 1")


class CommitsJob(Job):
    """Whatever is between the two transactions is done by half."""

    table = "drained_commits_jobs"
    database: str

    def perform(self) -> None:
        with psycopg.connect(self.database, autocommit=True) as connection, contextlib.suppress(BaseException):
            with connection.transaction():
                connection.execute("INSERT INTO bookings (account, job) VALUES (2, %s)", [self.id])
            connection.execute("UPDATE accounts SET balance = 5 WHERE id = 2")


class EngineJob(Job):
    """By SQLAlchemy, from a thread."""

    table = "drained_engine_jobs"
    database: str

    async def perform(self) -> None:
        await asyncio.to_thread(self.write)

    def write(self) -> None:
        engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(self.database))
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE accounts SET balance = 7 WHERE id = 3"))
            connection.execute(sqlalchemy.text("DELETE FROM bookings"))
        engine.dispose()


class ForeignJob(Job):
    """By another driver."""

    table = "drained_foreign_jobs"
    database: str

    def perform(self) -> None:
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.database)) as connection, connection.cursor() as cursor:
            cursor.execute("UPDATE accounts SET balance = 1")
            connection.commit()


@pytest.mark.parametrize("job_class", [OnceJob, EngineJob])
def test_a_job_that_may_be_run_twice_passes_and_leaves_no_trace(
    job_class: Any, bank: str, conn: psycopg.Connection
) -> None:
    conn.execute("INSERT INTO bookings (account, job) VALUES (3, 0)")
    assert_repeatable(job_class(database=bank), bank)
    assert value(conn, "SELECT sum(balance) FROM accounts") == 0
    assert value(conn, "SELECT array_agg(id) FROM bookings") == [1]
    assert value(conn, f"SELECT count(*) FROM {job_class.table}") == 0


async def test_a_job_that_must_not_be_run_twice_is_shown_with_its_difference(bank: str) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_repeatable(TwiceJob(database=bank), bank)
    assert str(caught.value).splitlines() == [
        "TwiceJob is not repeatable: killed and performed again, it leaves another database than once",
        "killed after its end:",
        '  + accounts {"id":1,"balance":2}',
        '  - accounts {"id":1,"balance":1}',
    ]


def test_work_done_by_half_is_found_at_its_statement(bank: str) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_repeatable(CommitsJob(database=bank), bank)
    lines = str(caught.value).splitlines()
    assert lines[1] == "killed before statement 3, UPDATE accounts SET balance = 5 WHERE id = 2:"
    assert lines[2] == '  - accounts {"id":2,"balance":5}' or lines[2].startswith("  + accounts")
    assert_repeatable(CommitsJob(database=bank), bank, ignore=["accounts"])


def test_what_can_not_be_judged_is_said(bank: str, conn: psycopg.Connection) -> None:
    with pytest.raises(ClusterError, match="writes by another library than psycopg 3"):
        assert_repeatable(ForeignJob(database=bank), bank)
    assert value(conn, "SELECT sum(balance) FROM accounts") == 0
    with pytest.raises(ClusterError, match="OnceJob sends 3 statements, more than most=2"):
        assert_repeatable(OnceJob(database=bank), bank, most=2)
    with pytest.raises(ClusterError, match="ignore names 'balanse', which is no table"):
        assert_repeatable(OnceJob(database=bank), bank, ignore=["balanse"])
    with pytest.raises(ClusterError, match="takes a URL"):
        assert_repeatable(OnceJob(database=bank), conn)  # type: ignore[arg-type]


class TwinJob(Job):
    table = "drained_twin_jobs"

    def perform(self) -> None: ...


class OtherTwinJob(Job):
    table = "drained_twin_jobs"

    def perform(self) -> None: ...


def test_of_two_classes_with_one_table_none_is_guessed(conn: psycopg.Connection, database_url: str) -> None:
    migrate(conn, [TwinJob])
    TwinJob().perform_later(conn)
    with pytest.raises(
        ClusterError, match=r"in drained_twin_jobs, and .*\.TwinJob and .*OtherTwinJob have that table: say"
    ):
        drain(database_url)
    assert [type(one.job) for one in drain(database_url, jobs=[OtherTwinJob])] == [OtherTwinJob]
