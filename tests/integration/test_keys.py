"""Limits per key: `max_concurrency` holds for each value of the column that `concurrency_key` names."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
from psycopg import errors

from cluster import Job
from cluster.errors import SchemaMisfitError
from cluster.migration import check_schema, migrate_jobs, planned_changes
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until

GATE = 7
"""Advisory lock that gated jobs wait for while the test holds it."""

JOBS = f"""
import os, psycopg
from cluster import Job

async def pass_gate(key):
    async with await psycopg.AsyncConnection.connect(os.environ["CLUSTER_DATABASE_URL"], autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock_shared({GATE}, %s)", [key])

class PayJob(Job):
    customer_id: int | None = None
    gated: bool = False
    max_concurrency = 1
    concurrency_key = "customer_id"

    async def perform(self):
        if self.gated:
            await pass_gate(self.customer_id or 0)
"""
TRAIL = """
CREATE TABLE trail (number bigint GENERATED ALWAYS AS IDENTITY, id bigint, customer_id bigint, at_once integer);
CREATE FUNCTION note_claim() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO trail (id, customer_id, at_once)
    VALUES (NEW.id, NEW.customer_id, (SELECT count(*) FROM pay_jobs WHERE status = 'running' AND customer_id = NEW.customer_id));
    RETURN NULL;
END $$;
CREATE TRIGGER note_claim AFTER UPDATE ON pay_jobs FOR EACH ROW
    WHEN (NEW.status = 'running' AND OLD.status <> 'running') EXECUTE FUNCTION note_claim();
"""


def close_gate(conn: psycopg.Connection, key: int) -> None:
    conn.execute("SELECT pg_advisory_lock(%s, %s)", [GATE, key])


def open_gate(conn: psycopg.Connection, key: int) -> None:
    conn.execute("SELECT pg_advisory_unlock(%s, %s)", [GATE, key])


def status(conn: psycopg.Connection, job_id: int) -> Any:
    row = conn.execute("SELECT status FROM pay_jobs WHERE id = %s", [job_id]).fetchone()
    return row and row[0]


def insert(conn: psycopg.Connection, customer: int | None, *, gated: bool = False, count: int = 1) -> list[int]:
    rows = conn.execute(
        "INSERT INTO pay_jobs (customer_id, gated) SELECT %s, %s FROM generate_series(1, %s) RETURNING id",
        [customer, gated, count],
    )
    return [row[0] for row in rows]


def value(conn: psycopg.Connection, query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    return row and row[0]


# --- what holds at every instant ---


def test_jobs_of_one_key_run_one_at_a_time_and_in_order(conn: psycopg.Connection, run_node: RunNode) -> None:
    for _ in range(3):
        run_node(JOBS, setup=TRAIL if value(conn, "SELECT to_regclass('trail')") is None else "")
    with conn.transaction():
        conn.execute("INSERT INTO pay_jobs (customer_id) SELECT n % 20 FROM generate_series(1, 600) n")
    for number in range(200):  # while others of the same keys run
        conn.execute("INSERT INTO pay_jobs (customer_id) VALUES (%s)", [number % 20])
    wait_for(conn, "SELECT count(*) = 800 FROM pay_jobs WHERE status = 'succeeded'", timeout=60)
    assert value(conn, "SELECT max(at_once) FROM trail") == 1
    out_of_order = """
        SELECT count(*) FROM (
            SELECT trail.id, lag(trail.id) OVER (PARTITION BY trail.customer_id ORDER BY number) AS before FROM trail
        ) AS claims WHERE id < before
    """
    assert value(conn, out_of_order) == 0
    assert value(conn, "SELECT count(*) FROM pay_jobs WHERE parked") == 0


def test_a_limit_above_one_holds_per_key(conn: psycopg.Connection, run_node: RunNode) -> None:
    source = JOBS.replace("max_concurrency = 1", "max_concurrency = 3")
    run_node(source, setup=TRAIL)
    run_node(source)
    conn.execute("INSERT INTO pay_jobs (customer_id) SELECT n % 5 FROM generate_series(1, 1000) n")
    wait_for(conn, "SELECT count(*) = 1000 FROM pay_jobs WHERE status = 'succeeded'", timeout=60)
    assert value(conn, "SELECT max(at_once) FROM trail") == 3


def test_a_full_key_keeps_nothing_else_waiting(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    close_gate(conn, 1)
    first, *others = insert(conn, 1, gated=True, count=5)
    wait_for(conn, f"SELECT status = 'running' FROM pay_jobs WHERE id = {first}")
    other_key, no_key = insert(conn, 2), insert(conn, None, count=3)
    wait_for(
        conn, f"SELECT count(*) = 4 FROM pay_jobs WHERE id = ANY (ARRAY{other_key + no_key}) AND status = 'succeeded'"
    )
    assert {status(conn, job) for job in others} == {"not_started"}
    open_gate(conn, 1)
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM pay_jobs")


def test_rows_without_a_key_have_no_limit(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    close_gate(conn, 0)
    insert(conn, None, gated=True, count=12)
    wait_for(conn, "SELECT count(*) = 12 FROM pay_jobs WHERE status = 'running'")
    open_gate(conn, 0)


@pytest.mark.slow
def test_a_hundred_thousand_waiting_rows_of_one_key_do_not_slow_the_others(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    close_gate(conn, 1)
    insert(conn, 1, gated=True, count=100_000)
    behind = insert(conn, 2)[0]
    begun = time.monotonic()
    wait_for(conn, f"SELECT status = 'succeeded' FROM pay_jobs WHERE id = {behind}", timeout=60)
    assert time.monotonic() - begun < 30  # once, while they are parked: a few seconds on a quiet machine
    wait_for(conn, "SELECT count(*) = 99999 FROM pay_jobs WHERE parked", timeout=60)
    waits = []
    for _ in range(20):
        begun = time.monotonic()
        job = insert(conn, 3)[0]
        wait_for(conn, f"SELECT status = 'succeeded' FROM pay_jobs WHERE id = {job}")
        waits.append(time.monotonic() - begun)
    assert sorted(waits)[10] < 0.5
    open_gate(conn, 1)
    wait_for(conn, "SELECT count(*) > 50 FROM pay_jobs WHERE customer_id = 1 AND status = 'succeeded'", timeout=30)


# --- room that somebody else frees ---


@pytest.mark.parametrize(
    "freed_by",
    [
        "DELETE FROM pay_jobs WHERE id = {first}",
        "UPDATE cluster.job_types SET max_concurrency_override = 2 WHERE name = 'PayJob'",
        "SELECT cluster.cancel('pay_jobs', {first})",
    ],
)
def test_room_is_used_whoever_frees_it(conn: psycopg.Connection, run_node: RunNode, freed_by: str) -> None:
    run_node(JOBS)
    close_gate(conn, 1)
    first = insert(conn, 1, gated=True)[0]
    wait_for(conn, f"SELECT status = 'running' FROM pay_jobs WHERE id = {first}")
    second, third = insert(conn, 1, count=2)
    wait_for(conn, "SELECT count(*) = 2 FROM pay_jobs WHERE parked")
    conn.execute(freed_by.format(first=first).encode())
    wait_for(conn, f"SELECT status = 'succeeded' FROM pay_jobs WHERE id = {second}", timeout=5)
    wait_for(conn, f"SELECT status = 'succeeded' FROM pay_jobs WHERE id = {third}", timeout=5)
    open_gate(conn, 1)


def test_the_keys_of_a_killed_node_go_on_elsewhere(conn: psycopg.Connection, run_node: RunNode) -> None:
    dies = run_node(JOBS, heartbeat_interval="1s", lease="5s")
    close_gate(conn, 1)
    first = insert(conn, 1, gated=True)[0]
    wait_for(conn, f"SELECT status = 'running' FROM pay_jobs WHERE id = {first}")
    run_node(JOBS, heartbeat_interval="1s", lease="5s")
    second = insert(conn, 1)[0]
    wait_for(conn, "SELECT count(*) = 1 FROM pay_jobs WHERE parked")
    dies.kill()
    open_gate(conn, 1)
    wait_for(conn, f"SELECT bool_and(status = 'succeeded') FROM pay_jobs WHERE id IN ({first}, {second})", timeout=20)


# --- what users do to parked rows ---


def test_a_parked_row_can_be_changed_like_any_waiting_row(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    close_gate(conn, 1)
    first = insert(conn, 1, gated=True)[0]
    wait_for(conn, f"SELECT status = 'running' FROM pay_jobs WHERE id = {first}")
    moved, cancelled, later, last = insert(conn, 1, count=4)
    wait_for(conn, "SELECT count(*) = 4 FROM pay_jobs WHERE parked")
    conn.execute("UPDATE pay_jobs SET customer_id = 2 WHERE id = %s", [moved])
    wait_for(conn, f"SELECT status = 'succeeded' FROM pay_jobs WHERE id = {moved}")
    conn.execute("SELECT cluster.cancel('pay_jobs', %s)", [cancelled])
    assert status(conn, cancelled) == "cancelled"
    conn.execute("SELECT cluster.retry('pay_jobs', %s)", [cancelled])
    conn.execute("UPDATE pay_jobs SET run_at = now() + interval '1 hour' WHERE id = %s", [later])
    assert status(conn, later) == "scheduled"
    conn.execute("UPDATE pay_jobs SET run_at = now() WHERE id = %s", [later])
    wait_for(conn, "SELECT count(*) = 3 FROM pay_jobs WHERE parked")
    open_gate(conn, 1)
    wait_for(conn, f"SELECT bool_and(status = 'succeeded') FROM pay_jobs WHERE id IN ({cancelled}, {later}, {last})")


def test_nobody_can_insert_a_row_that_stays_parked(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    conn.execute("INSERT INTO pay_jobs (customer_id, parked) VALUES (NULL, true), (4, true)")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM pay_jobs")
    with pytest.raises(errors.CheckViolation):
        conn.execute("UPDATE pay_jobs SET parked = true")


def test_a_limit_of_zero_holds_everything_back_and_parks_nothing(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    conn.execute("UPDATE cluster.job_types SET max_concurrency_override = 0 WHERE name = 'PayJob'")
    jobs = insert(conn, 1, count=3)
    conn.execute("UPDATE cluster.job_types SET max_concurrency_override = NULL WHERE name = 'PayJob'")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM pay_jobs")
    assert len(jobs) == 3


# --- the table ---


class KeyedJob(Job):
    customer_id: int
    table = "keyed_jobs"
    concurrency_key = "customer_id"

    async def perform(self) -> None: ...


class OtherKeyJob(Job):
    customer_id: int
    shop: str = "main"
    table = "keyed_jobs"
    concurrency_key = "shop"

    async def perform(self) -> None: ...


class UnkeyedJob(Job):
    customer_id: int
    table = "keyed_jobs"

    async def perform(self) -> None: ...


def indexes(conn: psycopg.Connection) -> set[str]:
    rows = conn.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'keyed_jobs'").fetchall()
    return {name.removeprefix("keyed_jobs_") for (name,) in rows}


def test_migrate_follows_a_key_that_comes_changes_and_goes(conn: psycopg.Connection) -> None:
    plain = {"pkey", "due", "running", "claim", "others", "queue"}
    keyed = {"pkey", "due", "running", "open", "open_others", "open_queue", "parked", "running_key"}
    migrate_jobs(conn, [UnkeyedJob])
    assert indexes(conn) == plain
    migrate_jobs(conn, [KeyedJob])
    assert indexes(conn) == keyed
    assert planned_changes(conn, [KeyedJob]) == []
    conn.execute("SET session_replication_role = replica")
    conn.execute("INSERT INTO keyed_jobs (customer_id, parked) VALUES (1, true)")
    conn.execute("SET session_replication_role = origin")
    migrate_jobs(conn, [OtherKeyJob])
    assert indexes(conn) == keyed
    assert "(shop, priority" in value(conn, "SELECT indexdef FROM pg_indexes WHERE indexname = 'keyed_jobs_parked'")
    assert value(conn, "SELECT count(*) FROM keyed_jobs WHERE parked") == 0
    migrate_jobs(conn, [UnkeyedJob])
    assert indexes(conn) == plain
    assert value(conn, "SELECT concurrency_key FROM cluster.job_types WHERE job_table = 'keyed_jobs'::regclass") is None
    assert planned_changes(conn, [UnkeyedJob]) == []


def test_sql_alone_gives_a_table_a_limit_per_key(conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.create_job_table('keyed_jobs')")
    with pytest.raises(errors.UndefinedColumn, match="no column customer_id"):
        conn.execute("SELECT cluster.create_job_table('keyed_jobs', 'customer_id')")
    conn.execute("ALTER TABLE keyed_jobs ADD COLUMN customer_id bigint")
    conn.execute("SELECT cluster.create_job_table('keyed_jobs', 'customer_id')")
    conn.execute("SELECT cluster.create_job_table('keyed_jobs')")  # as it was
    assert value(conn, "SELECT concurrency_key FROM cluster.job_types") == "customer_id"
    assert "parked" in indexes(conn)


def test_a_node_does_not_start_before_the_table_knows_its_key(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [UnkeyedJob])
    with pytest.raises(SchemaMisfitError, match=r"not prepared for a limit per customer_id.*cluster migrate"):
        check_schema(conn, [KeyedJob])


def test_a_node_leaves_a_table_alone_whose_key_is_another(conn: psycopg.Connection, run_node: RunNode) -> None:
    old = run_node(JOBS.replace('    concurrency_key = "customer_id"\n', ""), poll_interval="1s")
    insert(conn, 1)
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM pay_jobs")
    run_node(JOBS)  # migrates
    close_gate(conn, 1)
    insert(conn, 1, gated=True, count=3)
    wait_for(conn, "SELECT count(*) = 2 FROM pay_jobs WHERE parked")
    open_gate(conn, 1)
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM pay_jobs")
    assert value(conn, "SELECT count(DISTINCT locked_by) FROM pay_jobs") == 2
    wait_until(lambda: len(old.log("concurrency_key_differs")) == 1, "the old node says so")
