"""Worker processes that come up late, or never."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cluster import Job
from cluster.lease_clock import boottime
from cluster.migration import migrate_jobs
from cluster.notes import Notes, notes_size
from cluster.worker.perform import Performer
from cluster.worker.runner import Runner
from tests.support.nodes import NodeProcess, job_classes, wait_until, write_jobs

MODULES = {
    "boot": """
import sys
if "pytest" not in sys.modules:
    from cluster.coordinator import pool
    pool.BOOT_DEADLINE = 12.0
""",
    "fine": """
from cluster import Job

class PlainJob(Job):
    async def perform(self): ...
""",
}
ONLY_IN_FORKSERVER = """
import multiprocess, sys, time
if sys.argv[:1] == ["-c"] and multiprocess.current_process().name == "MainProcess" and "pytest" not in sys.modules:
    time.sleep({seconds})
"""

StartNode = Callable[..., NodeProcess]


@pytest.fixture
def start(conn: psycopg.Connection, database_url: str, tmp_path: Path) -> Iterator[StartNode]:
    """Starts a node whose forkserver takes so many seconds for its imports."""
    made: list[NodeProcess] = []

    def start(seconds: float, **settings: object) -> NodeProcess:
        write_jobs(tmp_path, {**MODULES, "odd": ONLY_IN_FORKSERVER.format(seconds=seconds)})
        migrate_jobs(conn, job_classes(tmp_path))
        made.append(NodeProcess(database_url, tmp_path, **settings))
        made[0].start()
        return made[0]

    yield start
    for node in made:
        node.clean_up()


@pytest.mark.parametrize("processes", [2, 12])
def test_a_forkserver_that_hangs_in_an_import_does_not_hold_up_a_stop(start: StartNode, processes: int) -> None:
    node = start(1000, processes=processes)
    wait_until(lambda: bool(node.log("node_started")), "it is registered")
    assert node.get("/livez") == 200
    assert node.get("/readyz") == 503
    assert node.stop(10) == 0


def test_a_node_whose_workers_all_hang_ends_with_4_the_modules_name_and_no_live_row(
    start: StartNode, conn: psycopg.Connection
) -> None:
    node = start(1000, processes=2)
    assert node.wait_exit(40) == 4
    assert "can't import jobs.odd in a worker process" in node.log()[-1]["event"]
    assert conn.execute("SELECT state FROM cluster.nodes").fetchall() == [("stopped",)]


def test_imports_may_take_longer_than_the_lease(start: StartNode) -> None:
    node = start(5, heartbeat_interval="1s", lease="3s", processes=1)
    node.wait_ready(20)
    assert not node.log("worker_boot_failed")


class EarlyStopJob(Job):
    async def perform(self) -> None:
        await asyncio.sleep(1000)


async def test_a_stop_that_comes_together_with_its_job_is_heard() -> None:
    """Otherwise the process would be killed 3 s later, with its neighbours."""
    runner = Runner([Performer.of(EarlyStopJob)], Notes(array("q", bytes(8 * notes_size(2))), 2), 2)
    sent: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    runner.channel.send = sent.put_nowait  # type: ignore[method-assign, assignment]
    times = [b"\0" * 8] * 2
    row = [b"\0" * 8, b"\0\0\0\1", b"\0\0\0\0", *times, b"default", b"\0\x32", *times, None, None]
    oids = [20, 23, 23, 1184, 701, 25, 21, 1184, 1184, 1184, 25]
    runner._receive(("perform", 0, boottime() + 60, oids, 1, [row]))
    runner._receive(("stop", [1], "cancelled"))
    kind, ((ticket, status, *_),) = await asyncio.wait_for(sent.get(), 5)
    assert (kind, ticket, status) == ("done", 1, "cancelled")
