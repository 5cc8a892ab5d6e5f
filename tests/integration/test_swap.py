"""Places under a full limit pass from job to job in one statement, `swap_limited_jobs.sql`: what holds while they do."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

JOBS = """
import asyncio
from datetime import timedelta
from cluster import Job

class SwapJob(Job):
    number: int = 0
    milliseconds: int = 0
    max_concurrency = 4
    max_attempts = 1

    async def perform(self):
        await asyncio.sleep(self.milliseconds / 1000)
        if self.number % 7 == 3:
            raise ValueError("as it was asked to")
"""
URGENT = """
class UrgentJob(Job):
    max_concurrency = None

    async def perform(self): ...
"""
TRAIL = """
CREATE TABLE trail (
    number bigint GENERATED ALWAYS AS IDENTITY, id bigint, status text, at_once integer,
    at timestamptz DEFAULT clock_timestamp(), in_transaction xid8 DEFAULT pg_current_xact_id()
);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO trail (id, status, at_once)
    VALUES (OLD.id, CASE TG_OP WHEN 'DELETE' THEN 'deleted' ELSE NEW.status::text END,
            (SELECT count(*) FROM swap_jobs WHERE status = 'running'));
    RETURN NULL;
END $$;
CREATE TRIGGER note_change AFTER UPDATE OR DELETE ON swap_jobs FOR EACH ROW EXECUTE FUNCTION note_change();
"""
SWAPS = """
SELECT count(*) FROM (
    SELECT FROM trail GROUP BY in_transaction HAVING bool_or(status = 'running') AND bool_or(status = 'succeeded')
) AS swap
"""
END_SESSION = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'jobcluster claim' AND datname = current_database()
"""
OUT_OF_ORDER = """
WITH claims AS (
    SELECT trail.number, (job.priority, job.run_at, job.id) AS place
    FROM trail JOIN swap_jobs AS job USING (id) WHERE trail.status = 'running'
)
SELECT count(*) FROM (SELECT place, lag(place) OVER (ORDER BY number) AS before FROM claims) AS claims WHERE place < before
"""


def value(conn: psycopg.Connection, query: str, *values: Any) -> Any:
    row = conn.execute(query.encode(), values).fetchone()
    return row and row[0]


def start(conn: psycopg.Connection, run_node: RunNode, source: str = JOBS, nodes: int = 2, **settings: Any) -> None:
    for _ in range(nodes):
        run_node(source, setup=TRAIL if value(conn, "SELECT to_regclass('trail')") is None else "", **settings)


def insert(conn: psycopg.Connection, count: int, *, milliseconds: int = 0, number: str = "0") -> None:
    conn.execute(
        f"INSERT INTO swap_jobs (number, milliseconds) SELECT {number}, {milliseconds} FROM generate_series(1, {count}) n".encode()
    )


def lower_and_raise_the_limit(conn: psycopg.Connection, times: int) -> None:
    """Each takes effect within seconds, and the limit in force is never passed."""
    insert(conn, 20_000, milliseconds=10)
    wait_for(conn, "SELECT count(*) > 100 FROM trail WHERE status = 'running'")
    for _ in range(times):
        set_limit(conn, 1)
        running = "SELECT count(*) <= 1 FROM swap_jobs WHERE status = 'running'"
        wait_for(conn, running, timeout=2)
        lowered = value(conn, "SELECT max(number) FROM trail")
        later = "FROM trail WHERE status = 'running' AND number > %s"
        wait_for(conn, f"SELECT count(*) > 30 {later}", [lowered])
        assert value(conn, f"SELECT max(at_once) {later}", lowered) == 1
        set_limit(conn, None)
        raised = value(conn, "SELECT max(number) FROM trail")
        wait_for(conn, f"SELECT max(at_once) = 4 {later}", [raised], timeout=3)
    assert value(conn, "SELECT max(at_once) FROM trail") == 4


def set_limit(conn: psycopg.Connection, limit: int | None) -> None:
    conn.execute("UPDATE cluster.job_types SET max_concurrency_override = %s WHERE name = 'SwapJob'", [limit])


def test_the_limit_holds_at_every_instant_and_each_job_runs_once(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node)
    insert(conn, 500)
    wait_for(conn, "SELECT count(*) = 500 FROM swap_jobs WHERE status = 'succeeded'")
    assert value(conn, "SELECT max(at_once) FROM trail") == 4
    assert value(conn, "SELECT bool_and(attempts_count = 1) FROM swap_jobs")
    assert value(conn, "SELECT count(*) FROM trail WHERE status = 'running'") == 500
    assert value(conn, SWAPS) > 10


def test_jobs_with_a_limit_of_one_keep_their_order(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, JOBS.replace("max_concurrency = 4", "max_concurrency = 1"))
    conn.execute("INSERT INTO swap_jobs (priority) SELECT 1 + n * 37 % 5 FROM generate_series(1, 200) n")
    wait_for(conn, "SELECT count(*) = 200 FROM swap_jobs WHERE status = 'succeeded'")
    assert value(conn, "SELECT max(at_once) FROM trail") == 1
    assert value(conn, OUT_OF_ORDER) == 0
    assert value(conn, SWAPS) > 10


def test_a_limit_that_is_lowered_or_raised_takes_effect_while_jobs_swap(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    start(conn, run_node)
    lower_and_raise_the_limit(conn, times=3)
    assert value(conn, SWAPS) > 10
    assert value(conn, "SELECT count(*) > 100 FROM swap_jobs WHERE status = 'not_started'"), (
        "too few jobs for this test"
    )


def test_a_limit_of_zero_ends_the_swaps(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node)
    insert(conn, 20_000)
    wait_for(conn, "SELECT count(*) > 100 FROM trail WHERE status = 'running'")
    set_limit(conn, 0)
    wait_for(conn, "SELECT count(*) = 0 FROM swap_jobs WHERE status = 'running'", timeout=2)
    assert value(conn, "SELECT count(*) > 100 FROM swap_jobs WHERE status = 'not_started'"), (
        "too few jobs for this test"
    )


def test_failures_among_successes_are_written_as_such(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node)
    insert(conn, 700, number="n % 7", milliseconds=1)
    wait_for(conn, "SELECT bool_and(status IN ('succeeded', 'failed')) FROM swap_jobs")
    assert value(conn, "SELECT bool_and((status = 'failed') = (number = 3)) FROM swap_jobs")
    assert value(conn, "SELECT bool_and(attempts_count = 1) FROM swap_jobs")
    assert value(conn, "SELECT max(at_once) FROM trail") == 4


def test_a_failure_is_written_promptly_while_others_swap(conn: psycopg.Connection, run_node: RunNode) -> None:
    """It takes up a place until then."""
    start(conn, run_node, JOBS.replace("max_concurrency = 4", "max_concurrency = 16"), nodes=1)
    insert(conn, 20_000)
    wait_for(conn, "SELECT count(*) > 100 FROM trail WHERE status = 'running'")
    for _ in range(10):
        failing = value(conn, "INSERT INTO swap_jobs (number, priority) VALUES (3, 1) RETURNING id")
        wait_for(conn, f"SELECT status = 'failed' FROM swap_jobs WHERE id = {failing}")
    took = "SELECT max(failed.at - claimed.at) FROM trail AS claimed JOIN trail AS failed USING (id) WHERE failed.status = 'failed'"
    assert value(conn, took + " AND claimed.status = 'running'").total_seconds() < 0.5
    assert value(conn, "SELECT count(*) > 100 FROM swap_jobs WHERE status = 'not_started'"), (
        "too few jobs for this test"
    )


def test_a_session_that_ends_among_swaps_takes_no_outcome_with_it(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, JOBS.replace("max_attempts = 1", ""), nodes=1)
    insert(conn, 4000, milliseconds=1)
    for ended in range(1, 6):
        wait_for(conn, f"SELECT count(*) > {ended * 500} FROM trail WHERE status = 'running'")
        assert value(conn, END_SESSION) == 1
    wait_for(conn, "SELECT count(*) = 4000 FROM swap_jobs WHERE status = 'succeeded'")
    assert value(conn, "SELECT max(at_once) FROM trail") == 4
    assert value(conn, "SELECT count(*) FROM trail WHERE status = 'succeeded'") == 4000


def test_rows_that_are_not_kept_are_deleted_under_the_limit(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, JOBS.replace("max_attempts = 1", "retention = timedelta(0)"))
    insert(conn, 500)
    wait_for(conn, "SELECT count(*) = 0 FROM swap_jobs")
    ends = "SELECT array_agg(DISTINCT status ORDER BY status), count(*) FROM trail WHERE status <> 'running'"
    assert conn.execute(ends.encode()).fetchone() == (["deleted"], 500)
    assert value(conn, "SELECT max(at_once) FROM trail") == 4
    assert value(conn, SWAPS) == 0


def test_a_better_priority_in_another_table_is_not_starved(conn: psycopg.Connection, run_node: RunNode) -> None:
    """The type that swaps has as many places as the node has slots."""
    start(conn, run_node, JOBS + URGENT, nodes=1, processes=1, concurrency=4)
    insert(conn, 20_000, milliseconds=2)
    wait_for(conn, "SELECT count(*) > 100 FROM trail WHERE status = 'running'")
    waits = []
    for _ in range(10):
        urgent = value(conn, "INSERT INTO urgent_jobs (priority) VALUES (1) RETURNING id")
        wait_for(conn, f"SELECT status = 'succeeded' FROM urgent_jobs WHERE id = {urgent}")
        waits.append(
            value(conn, "SELECT extract(epoch FROM started_at - run_at)::float8 FROM urgent_jobs WHERE id = %s", urgent)
        )
    assert max(waits) < 1
    assert value(conn, "SELECT count(*) > 100 FROM swap_jobs WHERE status = 'not_started'"), (
        "too few jobs for this test"
    )
    assert value(conn, SWAPS) > 10


MERGE = """
import sys
from cluster.coordinator import claim
if "pytest" not in sys.modules:  # only in nodes: the test imports its job classes too
    claim.LONGEST_MERGE = 1.0
"""
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON swap_jobs
FOR EACH ROW WHEN (NEW.number = 5 AND NEW.status = 'succeeded') EXECUTE FUNCTION refuse()
"""


def insert_one_by_one(conn: psycopg.Connection, count: int) -> None:
    """Each is performed before the next comes; only its outcome may still wait to be written."""
    for number in range(1, count + 1):
        insert(conn, 1)
        wait_for(conn, f"SELECT count(*) = {number} FROM trail WHERE status = 'running'")


def test_outcomes_without_a_limit_ride_with_the_next_claim(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, MERGE + JOBS.replace("max_concurrency = 4", "max_concurrency = None"), nodes=1)
    insert_one_by_one(conn, 20)
    wait_for(conn, "SELECT count(*) = 20 FROM swap_jobs WHERE status = 'succeeded'")
    assert value(conn, SWAPS) > 5
    assert value(conn, "SELECT bool_and(attempts_count = 1) FROM swap_jobs")


def test_an_outcome_that_is_refused_takes_no_claim_with_it(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, MERGE + JOBS.replace("max_concurrency = 4", "max_concurrency = None"), nodes=1)
    conn.execute(REFUSE.encode())
    for number in (1, 2, 5, 6, 8):
        insert(conn, 1, number=str(number))
    wait_for(
        conn,
        "SELECT bool_and(status = CASE number WHEN 5 THEN 'failed' ELSE 'succeeded' END::cluster.job_status) FROM swap_jobs",
    )
    assert value(conn, "SELECT bool_and(attempts_count = 1) FROM swap_jobs")
