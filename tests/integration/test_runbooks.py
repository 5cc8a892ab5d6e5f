"""What docs/runbooks.md says to type is typed: every SELECT, VACUUM and command of the runbooks works on a cluster with jobs."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from typer.testing import CliRunner

from cluster.cli.app import app

TEXT = " ".join((Path(__file__).parents[2] / "docs" / "runbooks.md").read_text(encoding="utf-8").split())
CODE = re.findall(r"`([^`]+)`", TEXT)
STATEMENTS = [code for code in CODE if re.match(r"(SELECT|VACUUM|UPDATE) ", code)]
COMMANDS = sorted({code for code in CODE if re.match(r"cluster [a-z]+", code)})
TYPED = {
    "cluster pause": "cluster pause mail_jobs",
    "cluster pause NAME --reason …": "cluster pause mail_jobs --reason typed",
    "cluster why NAME": "cluster why mail_jobs",
    "cluster clear": "cluster clear mail_jobs --yes",
    "cluster retry NAME --status failed --since 1h": "cluster retry mail_jobs --status failed --since 1h --yes",
    "cluster schedule backfill NAME": "cluster schedule backfill nightly --from 2026-01-01T00:00Z --to 2026-01-02T00:00Z --dry-run",
    "SELECT pg_terminate_backend(pid)": "SELECT pg_terminate_backend(0)",
    "UPDATE cluster.job_types SET max_concurrency_override = … WHERE name = …":
        "UPDATE cluster.job_types SET max_concurrency_override = 4 WHERE name = 'mail_jobs'",
}  # fmt: skip
"""Where somebody has to put something of their own."""
SETUP = """
SELECT cluster.create_job_table('mail_jobs');
INSERT INTO cluster.schedules (name, job_table, every) VALUES ('nightly', 'mail_jobs', '1 day');
INSERT INTO mail_jobs DEFAULT VALUES;
"""


def typed(code: str) -> str:
    return TYPED.get(code, code).replace("the_table", "mail_jobs").replace("NAME", "nightly")


def test_every_statement_of_the_runbooks_works(conn: psycopg.Connection) -> None:
    conn.execute(SETUP)
    assert len(STATEMENTS) >= 7
    for statement in STATEMENTS:
        conn.execute(typed(statement).encode())


def test_every_command_of_the_runbooks_works(conn: psycopg.Connection, database_url: str) -> None:
    conn.execute(SETUP)
    runner = CliRunner(env={"CLUSTER_DATABASE_URL": database_url, "COLUMNS": "80"})
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        done = runner.invoke(app, typed(command).removeprefix("cluster ").split())
        assert done.exit_code == 0, f"{command}: {done.output}"
