"""Rows that are due and cannot be had."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

JOBS = """
from cluster import Job

class DueJob(Job):
    async def perform(self): ...
"""


def cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_a_due_row_that_is_locked_keeps_no_node_busy_and_starts_when_it_is_free(
    conn: psycopg.Connection, database_url: str, run_node: RunNode
) -> None:
    node = run_node(JOBS)
    conn.execute("INSERT INTO due_jobs (run_at) VALUES (now() + interval '1 second')")
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM due_jobs FOR UPDATE")
        wait_for(conn, "SELECT now() > run_at + interval '0.5 seconds' FROM due_jobs")
        cpu, began = cpu_seconds(node.pid), time.monotonic()
        wait_for(conn, "SELECT now() > run_at + interval '2 seconds' FROM due_jobs")
        assert cpu_seconds(node.pid) - cpu < 0.15 * (time.monotonic() - began)
        other.rollback()
    wait_for(conn, "SELECT status = 'succeeded' FROM due_jobs", timeout=2)
