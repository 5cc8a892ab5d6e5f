"""A job that fails is never silent: the log says so, the application is told, and what jobs log says whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from cluster.error_text import describe
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, running_node, wait_for, wait_until
from tests.support.postgres import RunServer

SOURCE = """
import logging, os
from datetime import timedelta
import cluster
import structlog
from cluster import ConstantBackoff, Fail, Job

def tell(job, error, final):
    structlog.get_logger("tracker").info("told", job=type(job).__name__, where=os.getpid(), error=repr(error)[:60], final=final)
    raise RuntimeError("the tracker is away")

cluster.configure(on_failure=tell)

class Failing(Job):
    max_attempts = 2
    backoff = ConstantBackoff(timedelta(milliseconds=50))

class AsyncJob(Failing):
    async def perform(self): raise ValueError(f"no customer {self.id}")

class PlainJob(Failing):
    isolation = "thread"
    def perform(self): raise ValueError("plain\\n  second line")

class LateJob(Job):
    max_attempts = 1
    timeout = timedelta(milliseconds=50)
    async def perform(self):
        import asyncio
        await asyncio.sleep(60)

class SayingJob(Job):
    async def perform(self): return Fail("out of stock")

class CrashingJob(Job):
    max_attempts = 1
    async def perform(self): os._exit(3)

class NoisyJob(Job):
    max_attempts = 1
    async def perform(self): raise OSError(f"try {self.id}")

class TalkingJob(Job):
    async def perform(self):
        logging.getLogger("app.library").warning("by logging")
        structlog.get_logger("app").warning("by structlog")

class PlainTalkingJob(Job):
    isolation = "thread"
    def perform(self): logging.getLogger("app.library").warning("in a thread")
"""


@pytest.fixture(scope="module")
def told(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, Any]]:
    with (
        run_server.database(run_server.template()) as url,
        running_node(url, tmp_path_factory.mktemp("app"), SOURCE, processes=1) as node,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        yield node, connection


def perform(connection: psycopg.Connection[Any], table: str, count: int = 1) -> None:
    connection.execute(f"INSERT INTO {table} SELECT FROM generate_series(1, {count})".encode())
    wait_for(connection, f"SELECT bool_and(status IN ('succeeded', 'failed', 'timed_out')) FROM {table}")


def lines(node: NodeProcess, event: str, job_type: str, count: int = 1) -> list[dict[str, Any]]:
    """So many lines, once they are there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in node.log(event) if line.get("job_type") == job_type]

    wait_until(lambda: len(found()) >= count, f"{count} × {event} of {job_type}")
    assert len(found()) == count
    return found()


@pytest.mark.parametrize(
    ("job_type", "table", "error"),
    [("AsyncJob", "async_jobs", "ValueError: no customer 1"), ("PlainJob", "plain_jobs", "ValueError: plain")],
)
def test_a_retry_and_the_final_failure_are_logged(
    told: tuple[NodeProcess, Any], job_type: str, table: str, error: str
) -> None:
    node, connection = told
    perform(connection, table)
    (retry,), (failed,) = lines(node, "job_retry", job_type), lines(node, "job_failed", job_type)
    assert (retry["level"], retry["job_id"], retry["attempt"], retry["error"]) == ("warning", 1, 1, error)
    assert 0 < retry["next_in"] < 1
    assert (failed["level"], failed["job_id"], failed["attempt"], failed["error"]) == ("error", 1, 2, error)
    assert failed["exception"].startswith("Traceback")
    assert "in perform" in failed["exception"]


@pytest.mark.parametrize(
    ("job_type", "table", "status", "error"),
    [
        ("LateJob", "late_jobs", "timed_out", "timed out after 0.05 s"),
        ("SayingJob", "saying_jobs", "failed", "out of stock"),
        ("CrashingJob", "crashing_jobs", "failed", "the worker process died under this job: exit code 3"),
    ],
)
def test_every_way_to_fail_is_logged(
    told: tuple[NodeProcess, Any], job_type: str, table: str, status: str, error: str
) -> None:
    node, connection = told
    perform(connection, table)
    (failed,) = lines(node, "job_failed", job_type)
    assert failed["status"] == status
    assert failed["error"].startswith(error)


def test_a_workers_end_names_the_jobs_that_it_performed(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    perform(conn, "crashing_jobs")
    wait_until(lambda: bool(node.log("worker_ended")), "the end of the worker is logged")
    (ended,) = node.log("worker_ended")
    assert (ended["jobs"], ended["held"]) == (["CrashingJob 1"], 1)


def test_many_failures_of_one_kind_are_counted_and_not_repeated(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    perform(conn, "noisy_jobs", 300)
    assert node.stop() == 0
    assert len(node.log("job_failed")) == 5
    (left_out,) = node.log("job_lines_left_out")
    assert (left_out["left_out"], left_out["count"]) == ("job_failed", 295)


def test_the_application_is_told_where_the_job_ran_and_its_own_error_harms_nothing(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    perform(conn, "async_jobs")
    perform(conn, "plain_jobs")
    for job_type in ("AsyncJob", "PlainJob"):
        heard = [line for line in node.log("told") if line["job"] == job_type][-2:]
        assert [line["final"] for line in heard] == [False, True]
        assert {line["where"] for line in heard} <= set(node.workers())
        assert all(line["error"].startswith("ValueError(") for line in heard)
    assert all("the tracker is away" in line["exception"] for line in node.log("hook_failed"))
    assert conn.execute("SELECT last_error LIKE '%ValueError: plain%' FROM plain_jobs").fetchone() == (True,)


def test_what_a_job_logs_says_whose_it_is(told: tuple[NodeProcess, Any]) -> None:
    node, connection = told
    perform(connection, "talking_jobs")
    perform(connection, "plain_talking_jobs")
    expected = {"by logging": "TalkingJob", "by structlog": "TalkingJob", "in a thread": "PlainTalkingJob"}
    for event, job_type in expected.items():
        (line,) = lines(node, event, job_type)
        assert (line["job_id"], line["attempt"]) == (1, 1)


def test_every_job_has_a_line_where_that_is_asked_for(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1, log_jobs="all")
    perform(conn, "talking_jobs")
    (finished,) = lines(node, "job_finished", "TalkingJob")
    assert (finished["level"], finished["job_id"], finished["attempt"], finished["outcome"]) == (
        "info",
        1,
        1,
        "succeeded",
    )
    assert 0 <= finished["seconds"] < 5


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("values", ["('hunter2', NULL)", "('hunter2', '')"])
def test_the_text_of_an_error_names_the_constraint_and_leaves_out_the_row(
    conn: psycopg.Connection, values: str, wrap: bool
) -> None:
    conn.execute("CREATE TABLE people (password text, name text NOT NULL CONSTRAINT named CHECK (name <> ''))")
    try:
        try:
            conn.execute(f"INSERT INTO people VALUES {values}".encode())
        except psycopg.IntegrityError as error:
            if wrap:
                raise ExceptionGroup("two", [ValueError(), RuntimeError("no such person")]) from error
            raise
    except Exception as error:  # noqa: BLE001 - any kind is described
        text = describe(error)
    assert "IntegrityError" in text or "Violation" in text
    assert '"people"' in text
    assert "hunter2" not in text.replace(values, "")
    assert "DETAIL:  The row is left out here." in text
