"""Job code that does what programs do: signals, child processes, waiting, holding the interpreter."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until

SOURCE = """
import asyncio, ctypes, faulthandler, multiprocessing, os, signal, subprocess, sys, threading, time
from datetime import timedelta
import multiprocess, psycopg
from cluster import Job

faulthandler.register(signal.SIGUSR1)
INTERPRETER = ctypes.PyDLL(None)  # holds the interpreter while it calls

class MainThreadJob(Job):
    max_attempts = 1
    def perform(self):
        assert threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, lambda *_: print("alarm", flush=True))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        signal.pause()
        signal.signal(signal.SIGALRM, before)
        assert asyncio.run(asyncio.sleep(0, "ran")) == "ran"

def double(number):
    return 2 * number

class PoolJob(Job):
    package: str
    max_attempts = 1
    def perform(self):
        with {"multiprocess": multiprocess, "multiprocessing": multiprocessing}[self.package].Pool(2) as pool:
            assert pool.map(double, range(10)) == [2 * number for number in range(10)]
        child = multiprocessing.Process(target=time.sleep, args=(1000,))
        child.start()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM

class StartsJob(Job):
    how: str
    timeout = timedelta(seconds=1)
    max_attempts = 1
    def perform(self):
        command = [sys.executable, "-c", "import time; time.sleep(1000)", "started by a job"]
        if self.how == "run":
            subprocess.run(command)
        program = subprocess.Popen(command)
        if self.how == "exit":
            os._exit(3)
        time.sleep(1000)

class WaitingJob(Job):
    timeout = timedelta(seconds=0.5)
    max_attempts = 1
    def perform(self):
        time.sleep(1000)

class HoldingJob(Job):
    timeout = timedelta(seconds=60)
    max_attempts = 1
    def perform(self):
        INTERPRETER.sleep(35)

class BlockingJob(Job):
    max_attempts = 1
    async def perform(self):
        time.sleep(3)

class ConnectionJob(Job):
    isolation = "thread"
    LOCAL = threading.local()
    def perform(self):
        if not hasattr(self.LOCAL, "connection"):
            self.LOCAL.connection = psycopg.connect(os.environ["CLUSTER_DATABASE_URL"], application_name="of a thread")
        self.LOCAL.connection.execute("SELECT pg_sleep(0.001)")
"""


def performed(conn: psycopg.Connection, table: str, timeout: float = 20) -> tuple[str, str | None]:
    """Status and error of the table's only job once it has ended."""
    wait_for(conn, f"SELECT count(*) = 1 FROM {table} WHERE finished_at IS NOT NULL", timeout=timeout)
    row = conn.execute(f"SELECT status::text, last_error FROM {table}".encode()).fetchone()
    assert row is not None
    return row


def test_a_plain_job_has_the_main_thread_with_its_signals_and_no_loop(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO main_thread_jobs DEFAULT VALUES")
    assert performed(conn, "main_thread_jobs") == ("succeeded", None)
    assert node.output() == "alarm\n"


@pytest.mark.parametrize("package", ["multiprocess", "multiprocessing"])
def test_a_plain_job_may_have_pools_and_children(package: str, conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO pool_jobs (package) SELECT %s FROM generate_series(1, 10)", [package])
    wait_for(conn, "SELECT count(*) = 10 FROM pool_jobs WHERE finished_at IS NOT NULL", timeout=40)
    assert conn.execute("SELECT DISTINCT status::text, last_error FROM pool_jobs").fetchall() == [("succeeded", None)]


def started_programs(node: NodeProcess) -> list[int]:
    """Pids of what the jobs of this node have started and is still there."""
    found = []
    for pid in node.processes():
        with contextlib.suppress(OSError):
            if b"started by a job" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize(("how", "status"), [("run", "timed_out"), ("leave", "timed_out"), ("exit", "failed")])
def test_what_a_job_has_started_ends_with_it(
    how: str, status: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO starts_jobs (how) VALUES (%s)", [how])
    assert performed(conn, "starts_jobs")[0] == status
    wait_until(lambda: not started_programs(node), "the program has ended")


def test_what_jobs_have_started_ends_with_a_coordinator_that_is_killed(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE.replace("seconds=1)", "seconds=100)"), processes=2)
    conn.execute("INSERT INTO starts_jobs (how) VALUES ('run'), ('leave')")
    wait_until(lambda: len(started_programs(node)) == 2, "both programs run")
    node.kill()
    wait_until(lambda: not node.processes(), "nothing is left", timeout=5)


def test_a_stop_reaches_a_plain_job_that_waits(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO waiting_jobs DEFAULT VALUES")
    status, error = performed(conn, "waiting_jobs")
    assert (status, "time.sleep(1000)" in (error or "")) == ("timed_out", True)
    assert conn.execute("SELECT finished_at - started_at < '2 seconds' FROM waiting_jobs").fetchone() == (True,)


@pytest.mark.slow
def test_a_plain_job_may_hold_the_interpreter_for_as_long_as_its_timeout_allows(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO holding_jobs DEFAULT VALUES")
    assert performed(conn, "holding_jobs", timeout=60) == ("succeeded", None)
    assert not node.log("worker_ended")


def test_an_async_job_that_blocks_is_named_with_its_stack(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO blocking_jobs DEFAULT VALUES")
    assert performed(conn, "blocking_jobs") == ("succeeded", None)
    (line,) = node.log("job_holds_loop")
    assert (line["job_type"], line["job_id"], line["neighbours"]) == ("BlockingJob", 1, 0)
    assert "in perform" in line["stack"]


def test_threads_are_used_again_so_connections_are_too(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(SOURCE, processes=1, concurrency=3)
    conn.execute("INSERT INTO connection_jobs SELECT FROM generate_series(1, 200)")
    wait_for(conn, "SELECT count(*) = 200 FROM connection_jobs WHERE status = 'succeeded'")
    opened = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'of a thread'"
                          " AND datname = current_database()").fetchone()  # fmt: skip
    assert opened is not None
    assert 1 <= opened[0] <= 3


def test_a_client_of_a_module_does_not_hold_up_the_end_of_its_program(database_url: str) -> None:
    code = f"from cluster import Client; c = Client({database_url!r}); c._pool.open(); c._pool.wait()"
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert time.monotonic() - begun < 5


def test_a_reader_of_the_log_that_stops_does_not_stop_the_node(
    conn: psycopg.Connection, database_url: str, tmp_path: Path, run_node: RunNode
) -> None:
    """The node's standard error is a pipe that nobody reads."""
    source = SOURCE + "\nclass NoisyJob(Job):\n    async def perform(self):\n        self.log.warning('x' * 1000)\n"
    run_node(source, processes=1).stop()
    app = next(tmp_path.glob("app-*"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTER_", "PG"))}
    environment |= {"CLUSTER_DATABASE_URL": database_url, "CLUSTER_HTTP_PORT": "0", "CLUSTER_PROCESSES": "1",
                    "CLUSTER_LOG_LEVEL": "debug"}  # fmt: skip
    command = [sys.executable, "-m", "cluster", "run"]
    with subprocess.Popen(command, cwd=app, env=environment, stderr=subprocess.PIPE, start_new_session=True) as node:
        conn.execute("INSERT INTO noisy_jobs SELECT FROM generate_series(1, 3000)")
        wait_for(conn, "SELECT count(*) = 3000 FROM noisy_jobs WHERE status = 'succeeded'", timeout=30)
        assert node.stderr is not None
        node.terminate()
        rest = node.stderr.read()
        assert node.wait() == 0
    assert 0 < rest.count(b'"event": "xxx') < 3000


DRAWS = """
import asyncio, os, random
import numpy
from cluster import Job

class DrawJob(Job):
    async def perform(self):
        with open("drawn", "a") as file:
            file.write(f"{os.getpid()} {numpy.random.random()} {random.random()}" + chr(10))
        while len({line.split()[0] for line in open("drawn")}) < 4:
            await asyncio.sleep(0.01)
"""


def test_workers_do_not_draw_the_same_random_numbers(conn: psycopg.Connection, run_node: RunNode) -> None:
    """They are forks of one process, into which the generators were imported; a job waits until all four have drawn."""
    node = run_node(DRAWS, processes=4, concurrency=1)
    conn.execute("INSERT INTO draw_jobs (priority) SELECT 50 FROM generate_series(1, 12)")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM draw_jobs")
    drawn = [line.split() for line in (node.app_dir / "drawn").read_text().splitlines()]
    assert len({pid for pid, *_ in drawn}) == 4
    assert len({number for _, number, _ in drawn}) == len({number for *_, number in drawn}) == 12
