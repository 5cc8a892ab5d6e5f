"""Whose fault an attempt's end is: a job pays for nothing that it has not done itself."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support import nodes
from tests.support.nodes import NodeProcess, wait_for, wait_until
from tests.support.rows import insert, others_go_on, run, wait_status

pytestmark = pytest.mark.fault

SOURCE = """
import asyncio, os
from cluster import Job

class Labelled(Job):
    label: str = ""
    max_attempts = {attempts}
    max_concurrency = None

    async def perform(self):
        os.write(1, f"begin {{self.id}} {{self.label}}\\n".encode())
        if self.label.startswith(("slow", "fail")):
            await asyncio.sleep(float(self.label.split()[1]))
        while self.label == "until over" and not os.path.exists("over"):
            await asyncio.sleep(0.02)
        if self.label.startswith("fail"):
            raise ValueError("the old job's")

class OddJob(Labelled): ...
class LimitedJob(Labelled):
    max_concurrency = 16
class GoodJob(Labelled): ...
"""
QUICK = {"heartbeat_interval": "500ms", "lease": "3s", "poll_interval": "500ms"}


def source(attempts: int = 3) -> str:
    return SOURCE.format(attempts=attempts)


# --- rows that are claimed ahead ---


def test_a_row_that_is_cancelled_or_deleted_before_it_has_begun_costs_no_other_anything(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    """Quick rows make the node claim ahead; then come long ones, and rows that wait for them in the worker."""
    node = run_node(source(), processes=1, **QUICK)
    workers = node.workers()
    with conn.transaction():
        insert(conn, "odd_jobs", *[""] * 3000, priority=10)
        long = insert(conn, "odd_jobs", *["slow 6"] * 16, priority=20)
        ahead = insert(conn, "odd_jobs", *["ahead"] * 40, priority=30)
    claimed = "SELECT array_agg(id) FROM odd_jobs WHERE label = 'ahead' AND status = 'running'"
    begun = "SELECT count(*) = 16 FROM odd_jobs WHERE label = 'slow 6' AND status = 'running'"
    wait_for(conn, begun)
    (were_ahead,) = run(conn, claimed)[0]
    run(conn, "SELECT cluster.cancel('odd_jobs', id) FROM unnest(%s::bigint[]) AS id", ahead[::2])
    run(conn, "DELETE FROM odd_jobs WHERE id = ANY (%s)", ahead[1::2])
    assert were_ahead, "nothing was claimed ahead: the test shows nothing"
    wait_status(conn, "odd_jobs", "succeeded", long)
    wait_status(conn, "odd_jobs", "cancelled", ahead[::2])
    assert run(conn, "SELECT max(attempts_count) FROM odd_jobs WHERE label <> 'ahead'") == [(1,)]
    assert not [line for line in node.output().splitlines() if line.endswith(" ahead")], "one of them ran"
    assert node.workers() == workers
    others_go_on(conn)
    assert node.stop() == 0


def test_quick_rows_do_not_wait_behind_long_ones_while_another_node_is_idle(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(source(), processes=2, **QUICK)
    with conn.transaction():
        insert(conn, "odd_jobs", *[""] * 4000, priority=10)
        insert(conn, "odd_jobs", *["slow 15"] * 32, priority=20)
        quick = insert(conn, "odd_jobs", *["quick"] * 150, priority=30)
    wait_for(conn, "SELECT count(*) = 32 FROM odd_jobs WHERE label = 'slow 15' AND status = 'running'")
    run_node(source(), processes=2, **QUICK)
    wait_status(conn, "odd_jobs", "succeeded", quick, timeout=4)
    assert run(conn, "SELECT count(*) FROM odd_jobs WHERE label = 'slow 15' AND status = 'running'") == [(32,)]


# --- nodes and processes that end ---


def test_a_node_that_is_stopped_under_load_leaves_no_row_and_costs_no_attempt(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    """Each stop comes with claims in flight, and each job has a single attempt."""
    states = "SELECT status::text, count(*) FROM {} WHERE status NOT IN ('succeeded', 'not_started') GROUP BY 1"
    run_node(source(attempts=1), **QUICK).stop()
    with producing(conn.info.dsn):
        for _ in range(10):
            node = run_node(source(attempts=1), shutdown_timeout="6s", **QUICK)
            done = run(conn, "SELECT count(*) FROM odd_jobs WHERE status = 'succeeded'")[0][0]
            wait_for(conn, "SELECT count(*) > %s + 300 FROM odd_jobs WHERE status = 'succeeded'", [done])
            assert node.stop() == 0
            for table in ("odd_jobs", "limited_jobs"):
                assert run(conn, states.format(table)) == []
    run_node(source(attempts=1), **QUICK)
    for table in ("odd_jobs", "limited_jobs"):
        wait_for(
            conn,
            f"SELECT bool_and(status = 'succeeded' AND attempts_count = 1), count(*) FILTER (WHERE status = 'failed') FROM {table}",
            timeout=60,
        )


@contextmanager
def producing(dsn: str) -> Iterator[None]:
    """As many jobs as a node performs, or more, until the end of the block."""
    over = threading.Event()

    def produce() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not over.wait(0.1):
                waiting = run(connection, "SELECT count(*) FROM odd_jobs WHERE status = 'not_started'")[0][0]
                for table in ("odd_jobs", "limited_jobs") if waiting < 2000 else ():
                    insert(connection, table, *["slow 0.005"] * 300)

    thread = threading.Thread(target=produce, name="producer", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_forkserver_that_dies_costs_no_job_an_attempt(
    attempts: int, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(source(attempts), **QUICK)
    ids = insert(conn, "odd_jobs", *["until over"] * 6)
    for _ in range(5):
        wait_until(lambda: len(node.workers()) == 2, "its workers are there", 20)
        begun = node.output().count("begin")
        wait_status(conn, "odd_jobs", "running", ids)
        wait_until(lambda begun=begun: node.output().count("begin") >= max(6, begun), "all have begun")  # type: ignore[misc]
        killed = forkserver(node)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda killed=killed: killed not in node.processes(), "it is dead")  # type: ignore[misc]
        wait_until(lambda begun=begun: node.output().count("begin") >= begun + 6, "all begin anew", 20)  # type: ignore[misc]
    assert run(conn, "SELECT DISTINCT status::text, attempts_count, crashes_count FROM odd_jobs") == [("running", 1, 0)]
    (node.app_dir / "over").touch()
    wait_status(conn, "odd_jobs", "succeeded", ids)
    assert node.stop() == 0


def forkserver(node: NodeProcess) -> int:
    """The process from which the workers are forked."""
    parents = {process.pid: process.parent for process in nodes._processes()}
    (parent,) = {parents[worker] for worker in node.workers()}
    return parent


# --- the same id again ---

REPLACEMENTS = {
    "delete": "DELETE FROM odd_jobs WHERE id = 1; INSERT INTO odd_jobs (id, label) OVERRIDING SYSTEM VALUE VALUES (1, 'slow 5')",
    "truncate": "TRUNCATE odd_jobs RESTART IDENTITY; INSERT INTO odd_jobs (label) VALUES ('slow 5')",
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_a_new_row_with_the_id_of_one_that_runs_has_an_outcome_of_its_own(
    how: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    """The old job would end first, and fail."""
    node = run_node(source(attempts=1), processes=1, heartbeat_interval="10s", lease="30s", poll_interval="500ms")
    workers = node.workers()
    neighbour = insert(conn, "good_jobs", "slow 7")
    assert insert(conn, "odd_jobs", "fail 3") == [1]
    wait_until(lambda: node.output().count("begin") == 2, "both have begun")
    with conn.transaction():
        run(conn, REPLACEMENTS[how])
    wait_until(lambda: "begin 1 slow 5" in node.output(), "the new one has begun beside the old one", 2.5)
    wait_for(conn, "SELECT status NOT IN ('not_started', 'running') FROM odd_jobs WHERE id = 1")
    assert run(conn, "SELECT status::text, attempts_count, last_error FROM odd_jobs") == [("succeeded", 1, None)]
    wait_status(conn, "good_jobs", "succeeded", neighbour)
    assert run(conn, "SELECT attempts_count FROM good_jobs") == [(1,)]
    assert node.workers() == workers
    assert node.stop() == 0
