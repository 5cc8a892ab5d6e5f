"""What plain SQL may do to a job table, and with which SQLSTATE the database answers when it may not."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import psycopg
import pydantic
import pytest
from psycopg import errors, sql

from cluster import Job, References
from cluster.migration import migrate_jobs

STATUSES = ["scheduled", "not_started", "running", "retry", "succeeded", "failed", "timed_out", "cancelled"]
WAITING = ["scheduled", "not_started", "retry"]
FINISHED = ["succeeded", "failed", "timed_out", "cancelled"]
NODE = "00000000-0000-0000-0000-000000000001"


class OrderJob(Job):
    customer_id: Annotated[int, References("customers.id", on_delete="cascade")]
    amount: Annotated[int, pydantic.Field(ge=1, lt=100)] = 1
    code: Annotated[str, pydantic.Field(max_length=5, pattern="^[a-z]+$")] = "a"
    colour: Literal["red", "blue"] = "red"

    queue = "orders"

    def perform(self) -> None: ...


Insert = Callable[..., tuple[Any, ...]]


@pytest.fixture
def orders(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute("CREATE TABLE customers (id integer PRIMARY KEY)")
    conn.execute("INSERT INTO customers VALUES (1), (2)")
    migrate_jobs(conn, [OrderJob])
    return conn


@pytest.fixture
def insert(orders: psycopg.Connection) -> Insert:
    """INSERT with these columns as SQL expressions; returns id, queue, priority and status."""

    def insert(**values: str) -> tuple[Any, ...]:
        row = orders.execute(_insert_statement({"customer_id": "1"} | values)).fetchone()
        assert row is not None
        return row

    return insert


def _insert_statement(values: dict[str, str]) -> bytes:
    columns, expressions = ", ".join(values), ", ".join(values.values())
    return (
        f"INSERT INTO order_jobs ({columns}) VALUES ({expressions}) RETURNING id, queue, priority, status::text"
    ).encode()


def put(conn: psycopg.Connection, status: str, run_at: str = "now()") -> int:
    """A row in this status, as the engine would leave it. The triggers are off while it is written."""
    row = conn.execute(
        "INSERT INTO order_jobs (customer_id) VALUES (1) RETURNING id",
    ).fetchone()
    assert row is not None
    running = status == "running"
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(
            f"""UPDATE order_jobs SET status = %s, run_at = {run_at}, attempts_count = 3, crashes_count = 1,
                locked_by = %s, locked_at = CASE WHEN %s THEN now() END, last_error = 'x',
                started_at = now(), finished_at = CASE WHEN %s THEN now() END
                WHERE id = %s""".encode(),
            [status, NODE, running, status in FINISHED, row[0]],
        )
    return int(row[0])


def status(conn: psycopg.Connection, job_id: int) -> str:
    row = conn.execute("SELECT status::text FROM order_jobs WHERE id = %s", [job_id]).fetchone()
    assert row is not None
    return str(row[0])


# --- good inserts ---


def test_a_plain_insert_takes_the_classs_queue_and_is_claimable(insert: Insert) -> None:
    assert insert() == (1, "orders", 50, "not_started")


def test_an_insert_for_later_is_scheduled(insert: Insert) -> None:
    assert insert(run_at="now() + interval '1 day'")[3] == "scheduled"
    assert insert(run_at="now() - interval '1 day'")[3] == "not_started"
    assert insert(run_at="now()")[3] == "not_started"


def test_queue_and_priority_may_be_chosen(insert: Insert) -> None:
    assert insert(queue="'email'", priority="10")[1:3] == ("email", 10)
    assert insert(priority="1")[2] == 1
    assert insert(priority="100")[2] == 100


def test_copy_and_multi_row_inserts_are_inserts(orders: psycopg.Connection) -> None:
    with orders.cursor().copy("COPY order_jobs (customer_id, run_at) FROM STDIN") as copy:
        copy.write(b"1\t2020-01-01\n2\t2999-01-01\n")
    orders.execute(
        "INSERT INTO order_jobs (customer_id, run_at)"
        " SELECT 1, now() + make_interval(hours => n) FROM generate_series(0, 1) n"
    )
    found = orders.execute("SELECT status::text FROM order_jobs ORDER BY id").fetchall()
    assert [row[0] for row in found] == ["not_started", "scheduled", "not_started", "scheduled"]


def test_values_that_equal_the_defaults_may_be_given(insert: Insert) -> None:
    assert insert(status="'not_started'", attempts_count="0", locked_at="NULL")[3] == "not_started"


# --- bad inserts ---


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("customer_id", "'many'", errors.InvalidTextRepresentation),
        ("customer_id", "true", errors.DatatypeMismatch),
        ("customer_id", "3", errors.ForeignKeyViolation),
        ("customer_id", "NULL", errors.NotNullViolation),
        ("amount", "0", errors.CheckViolation),
        ("amount", "100", errors.CheckViolation),
        ("code", "'abcdef'", errors.CheckViolation),
        ("code", "'A'", errors.CheckViolation),
        ("colour", "'green'", errors.CheckViolation),
        ("priority", "0", errors.CheckViolation),
        ("priority", "101", errors.CheckViolation),
        ("priority", "NULL", errors.NotNullViolation),
        ("priority", "100000", errors.NumericValueOutOfRange),
        ("queue", "''", errors.CheckViolation),
        ("queue", "NULL", errors.NotNullViolation),
        ("run_at", "'infinity'", errors.CheckViolation),
        ("run_at", "'-infinity'", errors.CheckViolation),
        ("run_at", "NULL", errors.NotNullViolation),
        ("run_at", "'tomorrow-ish'", errors.InvalidDatetimeFormat),
        ("status", "'done'", errors.InvalidTextRepresentation),
        ("status", "NULL", errors.NotNullViolation),
        *[("status", f"'{name}'", errors.CheckViolation) for name in STATUSES if name != "not_started"],
        ("locked_at", "now()", errors.CheckViolation),
        ("locked_by", f"'{NODE}'", errors.CheckViolation),
        ("attempts_count", "1", errors.CheckViolation),
        ("attempts_count", "NULL", errors.NotNullViolation),
        ("crashes_count", "1", errors.CheckViolation),
        ("started_at", "now()", errors.CheckViolation),
        ("finished_at", "now()", errors.CheckViolation),
        ("cancel_requested_at", "now()", errors.CheckViolation),
        ("no_such_column", "1", errors.UndefinedColumn),
    ],
)
def test_a_bad_insert_is_refused_with_its_sqlstate(
    insert: Insert, column: str, value: str, error: type[psycopg.Error]
) -> None:
    with pytest.raises(error):
        insert(**{column: value})


def test_a_missing_value_is_refused(orders: psycopg.Connection) -> None:
    with pytest.raises(errors.NotNullViolation):
        orders.execute("INSERT INTO order_jobs DEFAULT VALUES")


def test_the_refusal_of_an_engine_column_says_what_to_do(insert: Insert) -> None:
    with pytest.raises(errors.CheckViolation) as caught:
        insert(status="'scheduled'", run_at="now() + interval '1 day'")
    assert caught.value.diag.message_hint is not None
    assert "To run the job later, set run_at" in caught.value.diag.message_hint
    assert caught.value.diag.table_name == "order_jobs"


# --- privileges ---


@pytest.fixture
def producer(orders: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The same connection as a role that may do nothing but INSERT the columns of a producer."""
    role = sql.Identifier(f"producer_{uuid.uuid4().hex}")
    orders.execute(sql.SQL("CREATE ROLE {}").format(role))
    orders.execute(sql.SQL("GRANT INSERT (customer_id, queue, priority, run_at) ON order_jobs TO {}").format(role))
    orders.execute(sql.SQL("SET ROLE {}").format(role))
    yield orders
    orders.execute("RESET ROLE")
    orders.execute(sql.SQL("DROP OWNED BY {}").format(role))
    orders.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_role_with_nothing_but_insert_can_enqueue_now_and_for_later(producer: psycopg.Connection) -> None:
    producer.execute("INSERT INTO order_jobs (customer_id) VALUES (1)")
    producer.execute(
        "INSERT INTO order_jobs (customer_id, run_at) VALUES (1, now() + interval '1 day')",
    )
    with pytest.raises(errors.InsufficientPrivilege):
        producer.execute("SELECT id FROM order_jobs")
    with pytest.raises(errors.InsufficientPrivilege):
        producer.execute("INSERT INTO order_jobs (customer_id, status) VALUES (1, 'running')")
    producer.execute("RESET ROLE")
    found = producer.execute("SELECT status::text FROM order_jobs ORDER BY id").fetchall()
    assert [row[0] for row in found] == ["not_started", "scheduled"]


def test_a_role_with_nothing_but_insert_rings_the_doorbell(producer: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as watch:
        watch.execute("LISTEN cluster_doorbell")
        watch.execute("SELECT pg_advisory_lock(1751, 'order_jobs'::regclass::oid::integer)")
        producer.execute("INSERT INTO order_jobs (customer_id) VALUES (1)")
        rings = list(watch.notifies(timeout=5, stop_after=1))
    assert [ring.channel for ring in rings] == ["cluster_doorbell"]


def test_an_insert_does_not_notify_when_nobody_is_on_watch(orders: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN cluster_doorbell")
        orders.execute("INSERT INTO order_jobs (customer_id) VALUES (1)")
        orders.execute("NOTIFY cluster_doorbell, 'last'")
        assert [ring.payload for ring in listener.notifies(timeout=5, stop_after=1)] == ["last"]


# --- updates of waiting rows ---


def test_moving_run_at_moves_a_row_between_scheduled_and_not_started(orders: psycopg.Connection) -> None:
    job_id = put(orders, "scheduled", "now() + interval '1 day'")
    orders.execute("UPDATE order_jobs SET run_at = now() WHERE id = %s", [job_id])
    assert status(orders, job_id) == "not_started"
    orders.execute("UPDATE order_jobs SET run_at = now() + interval '1 hour' WHERE id = %s", [job_id])
    assert status(orders, job_id) == "scheduled"


def test_a_retry_that_is_made_due_runs_and_one_that_is_put_off_stays(orders: psycopg.Connection) -> None:
    job_id = put(orders, "retry", "now() + interval '1 hour'")
    orders.execute("UPDATE order_jobs SET run_at = now() + interval '2 hours' WHERE id = %s", [job_id])
    assert status(orders, job_id) == "retry"
    orders.execute("UPDATE order_jobs SET run_at = now() WHERE id = %s", [job_id])
    assert status(orders, job_id) == "not_started"


@pytest.mark.parametrize("change", ["run_at = now()", "queue = 'other'", "priority = 1"])
def test_a_waiting_row_that_changes_rings_like_a_new_one(
    orders: psycopg.Connection, database_url: str, change: str
) -> None:
    job_id = put(orders, "scheduled", "now() + interval '1 day'")
    with psycopg.connect(database_url, autocommit=True) as watch:
        watch.execute("LISTEN cluster_doorbell")
        watch.execute("SELECT pg_advisory_lock(1751, 'order_jobs'::regclass::oid::integer)")
        orders.execute(f"UPDATE order_jobs SET {change} WHERE id = {job_id}".encode())
        assert len(list(watch.notifies(timeout=5, stop_after=1))) == 1


def test_a_run_at_of_infinity_is_refused_by_update_too(orders: psycopg.Connection) -> None:
    job_id = put(orders, "not_started")
    with pytest.raises(errors.CheckViolation):
        orders.execute("UPDATE order_jobs SET run_at = 'infinity' WHERE id = %s", [job_id])


@pytest.mark.parametrize("to", [name for name in STATUSES if name != "running"])
def test_a_running_row_cannot_be_taken_out_of_that_state_by_hand(orders: psycopg.Connection, to: str) -> None:
    job_id = put(orders, "running")
    with pytest.raises(errors.CheckViolation):
        orders.execute("UPDATE order_jobs SET status = %s WHERE id = %s", [to, job_id])


@pytest.mark.parametrize("origin", [name for name in STATUSES if name != "running"])
def test_no_row_is_made_running_by_hand(orders: psycopg.Connection, origin: str) -> None:
    job_id = put(orders, origin)
    with pytest.raises(errors.CheckViolation):
        orders.execute("UPDATE order_jobs SET status = 'running' WHERE id = %s", [job_id])


# --- cancel and retry ---


def call(conn: psycopg.Connection, function: Literal["cancel", "retry"], job_id: int) -> str | None:
    row = conn.execute(
        sql.SQL("SELECT cluster.{}('order_jobs', %s)::text").format(sql.Identifier(function)), [job_id]
    ).fetchone()
    assert row is not None
    return row[0] if row[0] is None else str(row[0])


@pytest.mark.parametrize("origin", WAITING)
def test_cancel_ends_a_waiting_job_at_once(orders: psycopg.Connection, origin: str) -> None:
    job_id = put(orders, origin)
    assert call(orders, "cancel", job_id) == status(orders, job_id) == "cancelled"
    assert orders.execute("SELECT finished_at IS NOT NULL FROM order_jobs").fetchone() == (True,)


def test_cancel_tells_the_node_of_a_running_job(orders: psycopg.Connection, database_url: str) -> None:
    job_id = put(orders, "running")
    with psycopg.connect(database_url, autocommit=True) as node:
        node.execute("LISTEN cluster_cancel")
        assert call(orders, "cancel", job_id) == status(orders, job_id) == "running"
        (told,) = node.notifies(timeout=5, stop_after=1)
    oid = orders.execute("SELECT 'order_jobs'::regclass::oid::text").fetchone()
    assert told.payload == f"{oid[0] if oid else None} {job_id}"
    first = orders.execute("SELECT cancel_requested_at FROM order_jobs").fetchone()
    assert first is not None
    assert first[0] is not None
    call(orders, "cancel", job_id)
    assert orders.execute("SELECT cancel_requested_at FROM order_jobs").fetchone() == first


@pytest.mark.parametrize("origin", FINISHED)
def test_cancel_leaves_a_finished_job_as_it_is(orders: psycopg.Connection, origin: str) -> None:
    job_id = put(orders, origin)
    assert call(orders, "cancel", job_id) == status(orders, job_id) == origin


@pytest.mark.parametrize("origin", FINISHED)
def test_retry_starts_a_finished_job_from_zero(orders: psycopg.Connection, origin: str) -> None:
    job_id = put(orders, origin, "now() - interval '1 day'")
    assert call(orders, "retry", job_id) == status(orders, job_id) == "not_started"
    row = orders.execute(
        "SELECT attempts_count, crashes_count, num_nonnulls(locked_by, locked_at, started_at, finished_at,"
        " cancel_requested_at), now() - run_at < interval '1 minute' FROM order_jobs"
    ).fetchone()
    assert row == (0, 0, 0, True)


@pytest.mark.parametrize("origin", [*WAITING, "running"])
def test_retry_of_an_unfinished_job_is_refused(orders: psycopg.Connection, origin: str) -> None:
    job_id = put(orders, origin)
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        call(orders, "retry", job_id)
    hint = "Cancel it first." if origin == "running" else "To run it now, set its run_at to now()."
    assert caught.value.diag.message_hint == hint


@pytest.mark.parametrize("function", ["cancel", "retry"])
def test_a_job_that_does_not_exist_gives_null(orders: psycopg.Connection, function: Literal["cancel", "retry"]) -> None:
    assert call(orders, function, 999) is None


@pytest.mark.parametrize("function", ["cancel", "retry"])
def test_a_table_that_is_no_job_table_is_refused(orders: psycopg.Connection, function: str) -> None:
    with pytest.raises(errors.WrongObjectType, match="customers is not a job table"):
        orders.execute(sql.SQL("SELECT cluster.{}('customers', 1)").format(sql.Identifier(function)))


def test_the_override_of_a_limit_is_announced(orders: psycopg.Connection, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as node:
        node.execute("LISTEN cluster_doorbell")
        orders.execute("UPDATE cluster.job_types SET max_concurrency_override = 4 WHERE name = 'OrderJob'")
        assert len(list(node.notifies(timeout=5, stop_after=1))) == 1


def test_a_negative_limit_is_refused(orders: psycopg.Connection) -> None:
    with pytest.raises(errors.CheckViolation):
        orders.execute("UPDATE cluster.job_types SET max_concurrency_override = -1")
