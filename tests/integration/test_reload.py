"""SIGHUP: job code is imported anew, and workers are replaced one by one, each after its jobs."""

from __future__ import annotations

import os
import shutil
import signal

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until, write_jobs

SOURCE = """
import asyncio
from cluster import Fail, Job

VERSION = "old"

class TellJob(Job):
    async def perform(self):
        return Fail(VERSION)

class HoldJob(Job):
    async def perform(self):
        while not open("go").read():
            await asyncio.sleep(0.01)
        return Fail(VERSION)
"""


def reload(node: NodeProcess, source: str) -> None:
    # Byte code counts as that of a source of the same second and size.
    shutil.rmtree(node.app_dir / "jobs" / "__pycache__", ignore_errors=True)
    write_jobs(node.app_dir, source)
    node.hang_up()


def told(conn: psycopg.Connection) -> str:
    """By a job that is enqueued now."""
    (job_id,) = conn.execute("INSERT INTO tell_jobs DEFAULT VALUES RETURNING id").fetchone() or (0,)
    wait_for(conn, f"SELECT status = 'failed' FROM tell_jobs WHERE id = {job_id}")
    (text,) = conn.execute("SELECT last_error FROM tell_jobs WHERE id = %s", [job_id]).fetchone() or ("",)
    return str(text)


def test_new_code_takes_over_and_what_runs_ends_with_the_old(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=2)
    (node.app_dir / "go").touch()
    conn.execute("INSERT INTO hold_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM hold_jobs")
    before = node.workers()
    reload(node, SOURCE.replace('"old"', '"new"'))
    wait_until(lambda: bool(node.log("reloaded")), "the new code is there")
    wait_until(lambda: len(set(before) & set(node.workers())) < 2, "one is replaced")
    wait_until(lambda: told(conn) == "new", "jobs run with the new code")
    (node.app_dir / "go").write_text("now")
    wait_for(conn, "SELECT status = 'failed' AND attempts_count = 1 AND last_error = 'old' FROM hold_jobs")
    wait_until(lambda: not set(before) & set(node.workers()), "both are replaced")
    wait_until(lambda: len(node.forkservers()) == 1, "the old forkserver has ended")
    assert node.metrics()['cluster_reloads_total{result="done"}'] == 1
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import nothing_of_the_kind\n" + SOURCE, "can't import jobs: ModuleNotFoundError"),
        (SOURCE + "\nimport os; os._exit(3)\n", "importing jobs ended the process"),
        (SOURCE.replace("class HoldJob", "class HeldJob"), "HoldJob is gone"),
        (
            SOURCE.replace("class TellJob(Job):", "class TellJob(Job):\n    size: int = 1\n    max_attempts = 2"),
            "TellJob has changed its columns and max_attempts: that takes a restart of the node",
        ),
    ],
    ids=["no module", "ends the process", "class gone", "other columns"],
)
def test_code_that_cannot_be_used_changes_nothing(
    source: str, why: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    before = node.workers()
    reload(node, source)
    wait_until(lambda: bool(node.log("reload_failed")), "it is told")
    assert why in node.log("reload_failed")[0]["why"]
    assert node.metrics()['cluster_reloads_total{result="failed"}'] == 1
    assert (told(conn), node.workers()) == ("old", before)
    wait_until(lambda: len(node.forkservers()) == 1, "nothing of it is left")
    reload(node, SOURCE.replace('"old"', '"newer"'))
    wait_until(lambda: told(conn) == "newer", "the next one works")


def test_a_worker_that_dies_after_a_failed_reload_is_replaced_if_its_forkserver_dies_too(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    reload(node, SOURCE + "\nimport os; os._exit(3)\n")
    wait_until(lambda: bool(node.log("reload_failed")), "it is told")
    wait_until(lambda: len(node.forkservers()) == 1, "nothing of it is left")
    write_jobs(node.app_dir, SOURCE)
    before = node.workers()
    os.kill(node.forkservers()[0], signal.SIGKILL)
    wait_until(lambda: bool(node.workers()) and node.workers() != before, "another worker is there")
    assert told(conn) == "old"


def test_a_class_that_is_new_is_named_as_not_served(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    reload(node, SOURCE + "\nclass LaterJob(Job):\n    async def perform(self): ...\n")
    wait_until(lambda: bool(node.log("reloaded")), "the new code is there")
    assert node.log("reloaded")[0]["not_served"] == ["LaterJob"]
