"""A worker process with too much memory costs the job that took it, and no neighbour."""

from __future__ import annotations

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until

SOURCE = """
import asyncio
import time
from cluster import Job

class BigJob(Job):
    mebibytes: int
    max_crashes = 2

    def perform(self):
        kept = bytearray(b"x" * 2**20) * self.mebibytes
        while self.mebibytes > 100:
            time.sleep(0.01)

class BigAsyncJob(Job):
    mebibytes: int
    max_crashes = 2

    async def perform(self):
        kept = bytearray(b"x" * 2**20) * self.mebibytes
        await asyncio.sleep(1000)

class SmallJob(Job):
    async def perform(self):
        while not open("go").read():
            await asyncio.sleep(0.01)
"""


def test_a_job_that_takes_too_much_memory_fails_and_says_so(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(SOURCE, processes=1, worker_memory="250MiB")
    conn.execute("INSERT INTO big_jobs (mebibytes) VALUES (400), (50)")
    wait_for(conn, "SELECT status = 'succeeded' AND crashes_count = 0 FROM big_jobs WHERE mebibytes = 50")
    wait_for(conn, "SELECT status = 'failed' AND crashes_count = 2 FROM big_jobs WHERE mebibytes = 400")
    (error,) = conn.execute("SELECT last_error FROM big_jobs WHERE mebibytes = 400").fetchone() or ("",)
    assert "MiB of memory, and CLUSTER_WORKER_MEMORY allows 250 MiB" in error


def test_neighbours_of_a_job_that_takes_too_much_memory_lose_no_attempt(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1, worker_memory="250MiB")
    (node.app_dir / "go").touch()
    conn.execute("INSERT INTO small_jobs SELECT FROM generate_series(1, 3)")
    wait_for(conn, "SELECT count(*) = 3 FROM small_jobs WHERE status = 'running'")
    conn.execute("INSERT INTO big_async_jobs (mebibytes) VALUES (400)")
    wait_until(lambda: bool(node.log("worker_ended")), "the process is ended")
    (node.app_dir / "go").write_text("now")
    wait_for(conn, "SELECT status = 'failed' AND crashes_count = 2 FROM big_async_jobs")
    wait_for(conn, "SELECT count(*) = 3 FROM small_jobs WHERE status = 'succeeded' AND attempts_count = 1")


def test_a_limit_below_what_the_imports_take_is_raised_and_told(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node("KEPT = bytearray(b'x' * 200 * 2**20)\n" + SOURCE, processes=1, worker_memory="128MiB")
    (line,) = node.log("worker_memory_too_small")
    assert line["allowed_mib"] == 128 < line["used_mib"] < line["raised_to_mib"]
    conn.execute("INSERT INTO big_jobs (mebibytes) VALUES (20)")
    wait_for(conn, "SELECT status = 'succeeded' AND crashes_count = 0 FROM big_jobs")
