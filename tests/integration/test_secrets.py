"""Values of columns marked as secret, on a real node."""

from __future__ import annotations

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import run

SOURCE = """
from typing import Annotated
from cluster import Job, Secret

class SignInJob(Job):
    password: Annotated[str, Secret()]
    account: int = 1
    max_attempts = 1

    async def perform(self):
        raise ValueError(f"no such password: {self.password}")

    async def after_failure(self, error, final):
        raise RuntimeError(f"can't tell of {self.password!r}")
"""


def test_neither_last_error_nor_the_log_of_a_node_has_a_secret_of_its_job(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE)
    run(conn, "INSERT INTO sign_in_jobs (password) VALUES ('hunter2-x')")
    wait_for(conn, "SELECT status = 'failed' FROM sign_in_jobs")
    ((error,),) = run(conn, "SELECT last_error FROM sign_in_jobs")
    assert error.endswith("ValueError: no such password: ••••••")
    assert node.stop() == 0
    lines = node.log()
    (failed,) = [line for line in lines if line.get("event") == "hook_failed"]
    assert "RuntimeError: can't tell of '••••••'" in str(failed["exception"])
    assert [line for line in lines if line.get("event") == "job_failed"]
    assert "hunter2" not in str(lines)
