"""Worker processes are replaced between jobs: no job is cut short, and none waits for more than its turn."""

from __future__ import annotations

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until

SOURCE = """
import asyncio
from cluster import Job

class ShortJob(Job):
    async def perform(self):
        pass

class HoldJob(Job):
    async def perform(self):
        while not open("go").read():
            await asyncio.sleep(0.01)

class BigJob(Job):
    KEPT = []

    async def perform(self):
        self.KEPT.append(bytearray(b"x" * 300 * 2**20))
"""


def test_a_worker_is_replaced_after_so_many_jobs(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=2, recycle_jobs=50)
    conn.execute("INSERT INTO short_jobs SELECT FROM generate_series(1, 400)")
    wait_for(conn, "SELECT bool_and(status = 'succeeded' AND attempts_count = 1 AND crashes_count = 0) FROM short_jobs")
    wait_until(lambda: node.metrics().get('cluster_worker_exits_total{reason="recycled"}', 0) >= 2, "two are replaced")
    assert "has performed" in node.log("worker_recycled")[0]["why"]
    assert not node.log("worker_ended")  # nothing that an operator must look at


def test_what_a_worker_performs_ends_before_it_is_replaced(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1, recycle_age="1s")
    (node.app_dir / "go").touch()
    conn.execute("INSERT INTO hold_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM hold_jobs")  # until then, idle ones are replaced each second
    (first,) = node.workers()
    wait_until(lambda: bool(node.log("worker_recycled")), "the worker is to leave")
    conn.execute("INSERT INTO short_jobs DEFAULT VALUES")  # it waits for the successor
    assert node.workers() == [first]
    (node.app_dir / "go").write_text("now")
    wait_for(conn, "SELECT status = 'succeeded' AND attempts_count = 1 FROM hold_jobs")
    wait_for(conn, "SELECT status = 'succeeded' AND attempts_count = 1 FROM short_jobs")
    wait_until(lambda: first not in node.workers(), "it is replaced")


def test_a_worker_with_too_much_memory_is_replaced(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1, recycle_memory="300MiB")
    conn.execute("INSERT INTO big_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM big_jobs")
    wait_until(lambda: bool(node.log("worker_recycled")), "the worker is to leave")
    assert "MiB of memory" in node.log("worker_recycled")[0]["why"]
    conn.execute("INSERT INTO short_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM short_jobs")


def test_without_a_limit_no_worker_is_replaced(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    before = node.workers()
    conn.execute("INSERT INTO short_jobs SELECT FROM generate_series(1, 500)")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM short_jobs")
    assert node.workers() == before
