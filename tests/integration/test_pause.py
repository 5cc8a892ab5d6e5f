"""Pausing a job type, a queue or everything: by SQL and from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.nodes import job_classes, wait_for, write_jobs

SOURCE = """
from cluster import Job

class MailJob(Job):
    async def perform(self): ...

class PrintJob(Job):
    async def perform(self): ...
"""
LATER = """
from cluster import Job

class LaterJob(Job):
    async def perform(self): ...
"""
PAUSED = "SELECT name, paused_reason FROM cluster.job_types WHERE paused_at IS NOT NULL ORDER BY name"
QUEUES = "SELECT name, paused_reason FROM cluster.queues WHERE paused_at IS NOT NULL ORDER BY name"

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(conn: psycopg.Connection, database_url: str, tmp_path: Path) -> Command:
    """Runs `cluster …` on the test's database, whose tables are there."""
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CLUSTER_DATABASE_URL": database_url, "COLUMNS": "80"}
        return subprocess.run(
            [sys.executable, "-m", "cluster", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def rows(conn: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return conn.execute(query.encode()).fetchall()


@pytest.fixture
def tables(conn: psycopg.Connection, tmp_path: Path) -> None:
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))


@pytest.mark.parametrize(
    ("pause", "resume"),
    [
        ("SELECT cluster.pause('mail_jobs'::regclass, 'why')", "SELECT cluster.resume('mail_jobs'::regclass)"),
        ("SELECT cluster.pause('slow', 'why')", "SELECT cluster.resume('slow')"),
        ("SELECT cluster.pause(reason => 'why')", "SELECT cluster.resume()"),
    ],
)
def test_nothing_begins_of_what_is_paused_until_it_is_resumed(
    conn: psycopg.Connection, run_node: RunNode, pause: str, resume: str
) -> None:
    run_node(SOURCE)
    conn.execute(pause.encode())
    conn.execute("INSERT INTO mail_jobs (queue) VALUES ('slow')")
    conn.execute("INSERT INTO print_jobs DEFAULT VALUES")
    if "reason =>" not in pause:  # two looks of the nodes are over when the other one has run
        wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM print_jobs")
        conn.execute("INSERT INTO print_jobs DEFAULT VALUES")
        wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM print_jobs")
    assert rows(conn, "SELECT status::text FROM mail_jobs") == [("not_started",)]
    conn.execute(resume.encode())
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM mail_jobs")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM print_jobs")


@pytest.mark.usefixtures("tables")
def test_what_was_paused_by_itself_stays_so_when_everything_is_resumed(conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.pause('mail_jobs'::regclass, 'own')")
    conn.execute("SELECT cluster.pause(reason => 'all')")
    conn.execute("SELECT cluster.pause(reason => 'again')")
    assert rows(conn, PAUSED) == [("MailJob", "own"), ("PrintJob", "all")]
    assert rows(conn, QUEUES) == [("*", "all")]
    conn.execute("SELECT cluster.resume()")
    assert rows(conn, PAUSED) == [("MailJob", "own")]
    conn.execute("SELECT cluster.resume()")
    assert rows(conn, PAUSED) == [("MailJob", "own")]
    conn.execute("SELECT cluster.resume('mail_jobs'::regclass)")
    assert rows(conn, PAUSED) == rows(conn, QUEUES) == []


@pytest.mark.usefixtures("tables")
def test_a_type_that_comes_while_everything_is_paused_is_paused_and_resumed_with_it(
    conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute("SELECT cluster.pause(reason => 'move')")
    write_jobs(tmp_path / "later", LATER)
    migrate_jobs(conn, job_classes(tmp_path / "later"))
    assert ("LaterJob", "move") in rows(conn, PAUSED)
    conn.execute("SELECT cluster.pause('later_jobs'::regclass, 'ignored')")
    conn.execute("SELECT cluster.resume()")
    assert rows(conn, PAUSED) == []


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("statement", "error", "said"),
    [
        (
            "SELECT cluster.pause('mail_jobs')",
            errors.WrongObjectType,
            "mail_jobs is a job table, and a word without a type",
        ),
        ("SELECT cluster.resume('mail_jobs')", errors.WrongObjectType, "mail_jobs is a job table"),
        ("SELECT cluster.pause('pg_class'::regclass)", errors.WrongObjectType, "pg_class is not a job table"),
        ("SELECT cluster.pause('')", errors.CheckViolation, "queues_name_check"),
    ],
)
def test_what_can_not_be_paused_is_refused(
    conn: psycopg.Connection, statement: str, error: type[psycopg.Error], said: str
) -> None:
    with pytest.raises(error, match=said):
        conn.execute(statement.encode())
    assert rows(conn, PAUSED) == rows(conn, QUEUES) == []


def test_the_command_pauses_with_a_reason_that_status_shows(command: Command, conn: psycopg.Connection) -> None:
    assert command("pause", "MailJob", "--reason", "the mail server is away").stdout == (
        "table mail_jobs: paused: the mail server is away\n"
    )
    again = command("pause", "mail_jobs", "--reason", "other").stdout
    assert again.startswith("table mail_jobs: paused already, since 20")
    assert again.endswith(": the mail server is away\n")
    assert command("pause", "--queue", "bulk").stdout == "queue bulk: paused\n"
    status = command("status").stdout
    assert "MailJob is paused since 20" in status
    assert ": the mail server is away" in " ".join(status.split())
    assert "queue bulk is paused since 20" in status
    found = json.loads(command("status", "--json").stdout)
    assert [(queue["name"], queue["paused_reason"]) for queue in found["paused_queues"]] == [("bulk", None)]
    assert [row["paused_reason"] for row in found["job_types"]] == ["the mail server is away", None]
    resumed = command("resume", "MailJob")
    assert resumed.stdout == "table mail_jobs: resumed\n"
    assert resumed.stderr == "queues that are paused: bulk\n"
    assert command("resume", "--queue", "bulk").stdout == "queue bulk: resumed\n"
    assert command("resume", "--queue", "bulk").stdout == "queue bulk: was not paused\n"
    assert rows(conn, PAUSED) == rows(conn, QUEUES) == []


def test_the_command_pauses_everything(command: Command) -> None:
    assert command("pause", "--all", "--reason", "move").stdout == "everything: paused: move\n"
    status = command("status").stdout
    assert "everything is paused since 20" in status
    assert "MailJob is paused" not in status
    assert command("resume", "--all").stdout == "everything: resumed\n"
    assert "is paused" not in command("status").stdout


@pytest.mark.parametrize("words", [["pause"], ["pause", "MailJob", "--all"], ["resume", "MailJob", "--queue", "x"]])
def test_what_to_pause_must_be_said_once(command: Command, words: list[str]) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert "give one of: a job's name, --queue or --all" in " ".join(done.stderr.split()).replace("│ ", "")


def test_a_name_that_no_table_has_is_refused(command: Command) -> None:
    done = command("pause", "MialJob")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "cluster: there is no job table 'MialJob': did you mean 'MailJob'?\n"
