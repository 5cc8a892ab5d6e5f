"""Nodes whose every look begins at bounds, as if a snapshot were held: nothing is lost, late for long, or out of order."""

from __future__ import annotations

import psycopg

from tests.integration.conftest import RunNode
from tests.integration.test_swap import (
    JOBS,
    OUT_OF_ORDER,
    SWAPS,
    insert,
    lower_and_raise_the_limit,
    start,
    value,
)  # fmt: skip
from tests.support.nodes import wait_for

SLOW = """
import sys
from cluster.coordinator import bounds
if "pytest" not in sys.modules:  # only in nodes: the test imports its job classes too
    bounds.SLOW = -1.0
"""
FREE = JOBS.replace("max_concurrency = 4", "max_concurrency = None")
DONE = "SELECT bool_and(status = 'succeeded') FROM swap_jobs"


def test_rows_of_all_queues_and_priorities_are_performed(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, SLOW + FREE)
    conn.execute(
        "INSERT INTO swap_jobs (queue, priority) SELECT 'q' || n % 7, 1 + n % 90 FROM generate_series(1, 900) n"
    )
    wait_for(conn, DONE)
    assert value(conn, "SELECT bool_and(attempts_count = 1) FROM swap_jobs")


def test_rows_that_appear_behind_a_bound_start_within_seconds(conn: psycopg.Connection, run_node: RunNode) -> None:
    """Of a transaction that took long, and of a queue that nobody has met."""
    start(conn, run_node, SLOW + FREE)
    insert(conn, 200_000)
    wait_for(conn, "SELECT count(*) > 100 FROM trail WHERE status = 'running'")
    behind = "INSERT INTO swap_jobs (queue, run_at) VALUES (%s, now() - interval '1 hour') RETURNING id"
    late, other = value(conn, behind, "default"), value(conn, behind, "another")
    both = f"SELECT count(*) = 2 FROM swap_jobs WHERE id IN ({late}, {other}) AND status = 'succeeded'"
    wait_for(conn, both, timeout=8)
    assert value(conn, "SELECT count(*) > 100 FROM swap_jobs WHERE status = 'not_started'"), (
        "too few jobs for this test"
    )


def test_rows_that_are_promoted_long_after_they_were_due_are_seen(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, SLOW + FREE)
    insert(conn, 100)
    wait_for(conn, DONE)
    conn.execute("ALTER TABLE swap_jobs DISABLE TRIGGER cluster_check_new_job")
    conn.execute(
        "INSERT INTO swap_jobs (status, run_at) SELECT 'scheduled', now() - n * interval '1 second' FROM generate_series(1, 3000) n"
    )
    wait_for(conn, DONE)


def test_jobs_with_a_limit_of_one_keep_their_order(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, SLOW + JOBS.replace("max_concurrency = 4", "max_concurrency = 1"))
    conn.execute("INSERT INTO swap_jobs (priority) SELECT 1 + n * 37 % 5 FROM generate_series(1, 200) n")
    wait_for(conn, DONE)
    assert value(conn, "SELECT max(at_once) FROM trail") == 1
    assert value(conn, OUT_OF_ORDER) == 0


def test_a_limit_is_used_to_the_full_and_never_passed(conn: psycopg.Connection, run_node: RunNode) -> None:
    """Failures free places that no swap passes on."""
    start(conn, run_node, SLOW + JOBS)
    insert(conn, 700, number="n % 7", milliseconds=1)
    wait_for(conn, "SELECT bool_and(status IN ('succeeded', 'failed')) FROM swap_jobs")
    assert value(conn, "SELECT max(at_once) FROM trail") == 4
    assert value(conn, "SELECT bool_and(attempts_count = 1) FROM swap_jobs")
    assert value(conn, SWAPS) > 10


def test_a_limit_that_is_lowered_or_raised_takes_effect(conn: psycopg.Connection, run_node: RunNode) -> None:
    start(conn, run_node, SLOW + JOBS)
    lower_and_raise_the_limit(conn, times=2)
