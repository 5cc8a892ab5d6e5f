"""What the commands of operators say, and the line that each leaves in the audit; and when that is forgotten."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from cluster import statements
from cluster.cli.app import app
from tests.support.rows import run

TABLES = "SELECT cluster.create_job_table('mail_jobs'); UPDATE cluster.job_types SET max_concurrency = NULL"
NODE = """
INSERT INTO cluster.nodes (id, hostname, pid, version, lease_until, jobs, queues, slots)
VALUES (gen_random_uuid(), 'web-1', 7, '1', now() + interval '1 h', '{mail_jobs}', '{*}', 10)
"""
AUDIT = "SELECT action, target, filter, count FROM cluster.audit ORDER BY id"
Command = Callable[..., str]


@pytest.fixture
def command(database_url: str, conn: psycopg.Connection) -> Command:
    """Runs one, and returns its output."""
    run(conn, TABLES)

    def invoke(*words: str, fails: bool = False) -> str:
        environment = {"CLUSTER_DATABASE_URL": database_url, "COLUMNS": "80"}
        done = CliRunner(env=environment).invoke(app, words)
        assert (done.exit_code != 0) == fails, done.output
        return str(done.output)

    return invoke


def test_each_command_leaves_a_line_of_who_and_what(command: Command, conn: psycopg.Connection) -> None:
    run(conn, NODE)
    run(conn, "INSERT INTO mail_jobs (queue) SELECT 'bulk' FROM generate_series(1, 5)")
    command("pause", "mail_jobs", "--reason", "away")
    command("resume", "mail_jobs")
    command("pause", "--queue", "bulk")
    command("resume", "--all")
    command("pause", "--all")
    command("drain", "web-1:7", "--reason", "new disks")
    command("undrain", "web-1")
    command("cancel", "mail_jobs", "1")
    command("retry", "mail_jobs", "1")
    command("cancel", "mail_jobs", "--queue", "bulk", "--since", "1h", "--yes")
    command("clear", "mail_jobs", "--status", "cancelled", "--yes")
    waiting = ["not_started", "scheduled", "retry", "running"]
    assert run(conn, AUDIT) == [
        ("pause", "mail_jobs", {"reason": "away"}, None),
        ("resume", "mail_jobs", None, None),
        ("pause", "queue bulk", None, None),
        ("pause", "queue *", None, None),
        ("drain", "node web-1:7", {"reason": "new disks"}, None),
        ("undrain", "node web-1:7", None, None),
        ("cancel", "mail_jobs 1", None, 1),
        ("retry", "mail_jobs 1", None, 1),
        ("cancel all", "mail_jobs", {"queue": "bulk", "since": "1:00:00", "status": waiting}, 5),
        ("delete all", "mail_jobs", {"status": ["cancelled"]}, 5),
    ]
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    assert run(conn, "SELECT DISTINCT who, via FROM cluster.audit") == [(who, "cli")]


def test_what_is_refused_or_changes_nothing_leaves_no_line(command: Command, conn: psycopg.Connection) -> None:
    run(conn, NODE)
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    command("resume", "mail_jobs")
    command("undrain", "web-1")
    command("retry", "mail_jobs", "1", fails=True)
    command("cancel", "mail_jobs", "2", fails=True)
    assert "no node web-9" in command("drain", "web-9", fails=True)
    assert run(conn, AUDIT) == []


def test_without_the_right_to_leave_a_line_nothing_is_done(
    command: Command, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(conn, "ALTER TABLE cluster.audit ADD CHECK (action <> 'pause')")
    command("pause", "mail_jobs", fails=True)
    assert run(conn, "SELECT paused_at FROM cluster.job_types") == [(None,)]


def test_why_is_said_for_people_and_for_machines(command: Command, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    command(
        "pause", "mail_jobs", "--reason", "the mail server is away until somebody has found the plug and put it back"
    )
    shown = command("why", "mail_jobs")
    assert shown.startswith("mail_jobs 1\n1. type paused: Job type mail_jobs has been paused")
    assert max(map(len, shown.splitlines())) <= 80
    said: dict[str, Any] = json.loads(command("why", "mail_jobs", "1", "--json"))
    assert (said["table"], said["id"]) == ("mail_jobs", 1)
    assert [(each["rank"], each["reason"]) for each in said["reasons"]] == [(1, "type_paused"), (2, "no_node")]
    run(conn, "DELETE FROM mail_jobs")
    assert "nothing waits" in command("why", "mail_jobs")


def test_status_says_who_drains_and_why(command: Command, conn: psycopg.Connection) -> None:
    run(conn, NODE)
    command("drain", "web-1:7", "--reason", "new disks")
    assert "web-1:7 was told to drain, 0s ago: new disks" in command("status")


def test_what_was_done_more_than_400_days_ago_is_forgotten(conn: psycopg.Connection) -> None:
    query = (
        "INSERT INTO cluster.audit (at, who, via, action, target)"
        " VALUES (now() - %s * interval '1 day', 'ann', 'cli', 'pause', 'a')"
    )
    for days in (399, 401, 900):
        run(conn, query, days)
    assert conn.execute(statements.statement("prune_audit")).fetchone() == (2,)
    assert run(conn, "SELECT extract(day FROM now() - at)::integer FROM cluster.audit") == [(399,)]
