"""What users of IHP and of Redwood know of enqueueing, row by row: it is here, without what went wrong there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import psycopg
import pytest
from pydantic import BaseModel, Field

from cluster import Job, References
from cluster.errors import EnqueueError, JobArgumentError, JobDefinitionError
from cluster.migration import migrate_jobs


class Letter(BaseModel):
    subject: str
    copies: int = 1


class EmailCustomerJob(Job):
    customer_id: Annotated[int, References("customers.id")]
    letter: Letter = Letter(subject="welcome")
    discount: Annotated[int, Field(ge=0, le=100)] = 0

    queue = "email"

    def perform(self) -> str:
        return f"to {self.customer_id}: {self.letter.subject}"


@pytest.fixture
def tables(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute("CREATE TABLE customers (id integer PRIMARY KEY)")
    conn.execute("INSERT INTO customers VALUES (1), (2)")
    migrate_jobs(conn, [EmailCustomerJob])
    return conn


@pytest.fixture
def app(tables: psycopg.Connection, database_url: str) -> Iterator[psycopg.Connection]:
    """The application's connection, in transactions."""
    with psycopg.connect(database_url) as connection:
        yield connection


def one(connection: psycopg.Connection, query: str) -> Any:  # Any: whatever the query selects
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row if len(row) > 1 else row[0]


def test_enqueue_in_apps_transaction(app: psycopg.Connection, tables: psycopg.Connection) -> None:
    """Redwood: only with the same client; IHP: an INSERT. Here a plain INSERT and `perform_later` in one transaction."""
    app.execute("INSERT INTO customers VALUES (3)")
    EmailCustomerJob(customer_id=3).perform_later(app)
    app.execute("INSERT INTO email_customer_jobs (customer_id) VALUES (3)")
    assert one(tables, "SELECT count(*) FROM email_customer_jobs") == 0, "nobody sees it before"
    app.commit()
    assert one(tables, "SELECT count(*) FROM email_customer_jobs WHERE customer_id = 3") == 2


def test_typed_arguments(app: psycopg.Connection) -> None:
    """Redwood: a JSON array, which nobody checks. Here values are checked before the INSERT, and by Postgres at any other."""
    for wrong in ({"customer_id": "x"}, {"customer_id": 1, "letter": {}}, {"customer_id": 1, "discount": 101}, {}):
        with pytest.raises(JobArgumentError, match="EmailCustomerJob: "):
            EmailCustomerJob(**wrong)
    with pytest.raises(psycopg.errors.CheckViolation):
        app.execute("INSERT INTO email_customer_jobs (customer_id, discount) VALUES (1, 101)")
    app.rollback()
    EmailCustomerJob(customer_id=1, letter=Letter(subject="hi", copies=2)).perform_later(app)
    assert one(app, "SELECT customer_id, letter ->> 'copies', discount FROM email_customer_jobs") == (1, "2", 0)


def test_the_job_is_known_at_enqueueing(app: psycopg.Connection) -> None:
    """Redwood: a job enqueued from a script had no name or path, and failed when it ran."""
    with pytest.raises(EnqueueError, match=r"the class EmailCustomerJob: make a job of it, EmailCustomerJob\(…\)"):
        EmailCustomerJob.perform_many(app, [EmailCustomerJob])  # type: ignore[list-item]

    class NobodyJob(Job):
        number: int

    with pytest.raises(JobDefinitionError, match="has no perform method, so it is not a job type"):
        NobodyJob(number=1)


def test_enqueue_returns_id(app: psycopg.Connection) -> None:
    """Redwood 8: `true`. Here the job with its id, which is told apart from the one that was given."""
    job = EmailCustomerJob(customer_id=1)
    queued = job.perform_later(app)
    assert (job.id, queued.id) == (None, one(app, "SELECT id FROM email_customer_jobs"))
    assert queued.status(app) == "not_started"
    row = app.execute("INSERT INTO email_customer_jobs (customer_id) VALUES (2) RETURNING id").fetchone()
    assert row == ((queued.id or 0) + 1,)


def test_run_inline_now(app: psycopg.Connection) -> None:
    """IHP: callJob; Redwood: Job.perform(). Here `perform_now`, without a row."""
    assert EmailCustomerJob(customer_id=1).perform_now() == "to 1: welcome"
    assert one(app, "SELECT count(*) FROM email_customer_jobs") == 0


def test_delay_or_at_time(app: psycopg.Connection) -> None:
    """Redwood: a number of seconds, or a Date taken for one. Here a timedelta or a time with its zone, and not both."""
    at = datetime(2100, 1, 1, tzinfo=UTC)
    later = EmailCustomerJob(customer_id=1).perform_later(app, delay=timedelta(minutes=5))
    then = EmailCustomerJob(customer_id=1).perform_later(app, run_at=at)
    assert one(app, f"SELECT run_at - now(), status::text FROM email_customer_jobs WHERE id = {later.id}") == (
        timedelta(minutes=5), "scheduled",
    )  # fmt: skip
    assert one(app, f"SELECT run_at FROM email_customer_jobs WHERE id = {then.id}") == at
    wrong: list[dict[str, Any]] = [
        {"delay": timedelta(1), "run_at": at},
        {"delay": 300},
        {"run_at": at.replace(tzinfo=None)},
        {"delay": at},
        {"run_at": timedelta(1)},
    ]
    for arguments in wrong:
        with pytest.raises(EnqueueError):
            EmailCustomerJob(customer_id=1).perform_later(app, **arguments)


def test_queues(app: psycopg.Connection) -> None:
    """IHP: none. Redwood: of the definition, from a list. Here of the class, and another for one job."""
    EmailCustomerJob(customer_id=1).perform_later(app)
    EmailCustomerJob(customer_id=1).perform_later(app, queue="slow")
    app.execute("INSERT INTO email_customer_jobs (customer_id) VALUES (1)")
    found = app.execute("SELECT queue FROM email_customer_jobs ORDER BY id").fetchall()
    assert found == [("email",), ("slow",), ("email",)]


@pytest.mark.parametrize(("priority", "fits"), [(0, False), (1, True), (100, True), (101, False)])
def test_priority(app: psycopg.Connection, priority: int, fits: bool) -> None:
    """As Redwood's: 1 to 100, 50 by default; but others are refused, in every language."""
    EmailCustomerJob(customer_id=1).perform_later(app)
    assert one(app, "SELECT priority FROM email_customer_jobs") == 50
    if fits:
        EmailCustomerJob(customer_id=1).perform_later(app, priority=priority)
    else:
        with pytest.raises(psycopg.errors.CheckViolation):
            EmailCustomerJob(customer_id=1).perform_later(app, priority=priority)


def test_status_is_a_column(app: psycopg.Connection) -> None:
    """IHP: an enum of six. Redwood: derived from four columns. Here an enum, which an INSERT can't set."""
    assert one(app, "SELECT array_length(enum_range(NULL::cluster.job_status), 1)") == 8
    with pytest.raises(psycopg.errors.CheckViolation):
        app.execute("INSERT INTO email_customer_jobs (customer_id, status) VALUES (1, 'succeeded')")


def test_many_at_once(app: psycopg.Connection) -> None:
    """Neither has it. One statement, all of them or none."""
    jobs = (EmailCustomerJob(customer_id=1 + i % 2) for i in range(1000))
    assert EmailCustomerJob.perform_many(app, jobs, delay=timedelta(hours=1)) == 1000
    app.commit()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        EmailCustomerJob.perform_many(app, [EmailCustomerJob(customer_id=1), EmailCustomerJob(customer_id=99)])
    app.rollback()
    assert one(app, "SELECT count(*) FROM email_customer_jobs") == 1000


def test_cancel_job(app: psycopg.Connection) -> None:
    """IHP: delete the row. Cedar: sets failedAt. Here a status of its own, in the transaction; and back by `retry`."""
    queued = EmailCustomerJob(customer_id=1).perform_later(app, delay=timedelta(hours=1))
    app.commit()
    assert queued.cancel(app) == "cancelled"
    app.rollback()
    assert queued.status(app) == "scheduled"
    assert queued.cancel(app) == "cancelled"
    assert queued.retry(app) == "not_started"


def test_a_sql_contract_for_other_languages(app: psycopg.Connection) -> None:
    """Redwood: asked for. Here the statement of a job is there to be sent by any driver, and the row is all there is."""
    statement, values = EmailCustomerJob(customer_id=1, discount=5).insert(queue="slow")
    assert app.execute(statement.encode(), values).fetchone() == (1,)
    app.execute("INSERT INTO email_customer_jobs (customer_id, discount, queue) VALUES (1, 5, 'slow')")
    columns = "customer_id, letter, discount, queue, priority, run_at, status, attempts_count, created_at"
    assert one(app, f"SELECT count(DISTINCT ({columns})) FROM email_customer_jobs") == 1
