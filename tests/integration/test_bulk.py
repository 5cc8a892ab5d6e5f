"""Cancelling, retrying and deleting many jobs from the command line: what is chosen, what is asked, what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cluster import selection
from cluster.migration import migrate_jobs
from tests.integration.test_pause import SOURCE
from tests.support.nodes import job_classes, write_jobs

Command = Callable[..., subprocess.CompletedProcess[str]]
ROWS = """
SET session_replication_role = replica;  -- states that an INSERT may not make
INSERT INTO mail_jobs (id, status, queue, last_error, created_at, finished_at, locked_at, locked_by)
VALUES (1, 'not_started', 'default', NULL, now() - interval '1 h', NULL, NULL, NULL),
       (2, 'scheduled', 'bulk', NULL, now(), NULL, NULL, NULL),
       (3, 'retry', 'bulk', 'ValueError: 100% of it', now() - interval '3 d', NULL, NULL, NULL),
       (4, 'running', 'bulk', NULL, now(), NULL, now(), gen_random_uuid()),
       (5, 'failed', 'default', 'ValueError: 100% of it', now() - interval '9 d', now() - interval '2 d', NULL, NULL),
       (6, 'failed', 'bulk', 'KeyError: 1', now() - interval '9 d', now() - interval '1 h', NULL, NULL),
       (7, 'succeeded', 'default', NULL, now() - interval '9 d', now() - interval '40 d', NULL, NULL);
SET session_replication_role = DEFAULT;
INSERT INTO print_jobs DEFAULT VALUES
"""


@pytest.fixture
def command(conn: psycopg.Connection, database_url: str, tmp_path: Path) -> Command:
    """Runs `cluster …` on the test's database, with rows of every status in mail_jobs."""
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))
    conn.execute(ROWS)

    def run(*words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CLUSTER_DATABASE_URL": database_url, "COLUMNS": "80"}
        return subprocess.run(
            [sys.executable, "-m", "cluster", *words],
            cwd=tmp_path, env=environment, input=answer, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def ids(conn: psycopg.Connection, status: str) -> list[int]:
    query = "SELECT id FROM mail_jobs WHERE status::text = %s ORDER BY id"
    return [row[0] for row in conn.execute(query, [status])]


@pytest.mark.parametrize(
    ("words", "retried"),
    [
        (["--status", "failed"], [5, 6]),
        (["--status", "failed", "--status", "succeeded"], [5, 6, 7]),
        (["--error", "100%"], [5]),
        (["--queue", "bulk"], [6]),
        (["--since", "3h"], [6]),
        (["--since", "3d", "--error", "Error"], [5, 6]),
    ],
)
def test_retry_takes_what_was_chosen(
    command: Command, conn: psycopg.Connection, words: list[str], retried: list[int]
) -> None:
    done = command("retry", "MailJob", *words, "--yes")
    assert done.stdout == f"table mail_jobs: {len(retried)} not started\n"
    assert ids(conn, "not_started") == [1, *retried]


def test_cancel_ends_what_waits_and_tells_what_runs(command: Command, conn: psycopg.Connection) -> None:
    done = command("cancel", "mail_jobs", "--queue", "bulk", "--yes")
    assert done.stdout == "table mail_jobs: 2 cancelled, 1 running, asked to stop\n"
    assert ids(conn, "cancelled") == [2, 3]
    assert conn.execute("SELECT count(cancel_requested_at) FROM mail_jobs").fetchone() == (1,)


def test_it_says_how_many_and_asks(command: Command, conn: psycopg.Connection) -> None:
    words = ["retry", "MailJob", "--status", "failed"]
    for answer, said in (
        ("n\n", "nothing was changed"),
        ("", "nothing was changed: nobody answered; --yes does not ask"),
    ):
        done = command(*words, answer=answer)
        assert done.stdout.startswith("retry 2 jobs of table mail_jobs (2 failed)? [y/N]: ")
        assert (done.returncode, done.stderr.strip()) == (1, f"cluster: {said}")
    assert ids(conn, "failed") == [5, 6]
    assert command(*words, answer="y\n").returncode == 0
    assert ids(conn, "failed") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cancel", "MailJob"], "give ids, or say which: --status, --queue, --error, --since"),
        (["retry", "MailJob", "5", "--status", "failed"], "give ids, or say which"),
        (["retry", "MailJob", "--status", "running"], "a job that is running can't be retried"),
        (["cancel", "MailJob", "--status", "failed"], "a job that is failed can't be cancelled"),
        (["cancel", "MailJob", "--status", "faild"], "there is no status 'faild': not_started"),
        (["cancel", "MailJob", "--since", "soon"], "a duration looks like"),
        (["clear"], "give a job's name, or --all"),
        (["clear", "MailJob", "--all"], "give a job's name, or --all"),
        (["clear", "MailJob", "--status", "running"], "can't be deleted without --force"),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: Command, conn: psycopg.Connection, words: list[str], said: str
) -> None:
    done = command(*words, "--yes")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert conn.execute("SELECT count(*) FROM mail_jobs").fetchone() == (7,)


@pytest.mark.parametrize(
    ("words", "left", "said"),
    [
        (["MailJob"], [4], "6 deleted"),
        (["MailJob", "--force"], [], "7 deleted"),
        (["MailJob", "--older", "30d"], [1, 2, 3, 4, 5, 6], "1 deleted"),
        (["MailJob", "--older", "1d", "--status", "failed"], [1, 2, 3, 4, 6, 7], "1 deleted"),
        (["MailJob", "--queue", "bulk"], [1, 4, 5, 7], "3 deleted"),
        (["--all"], [4], "7 deleted"),
        (["--all", "--queue", "nowhere"], [1, 2, 3, 4, 5, 6, 7], "no such jobs"),
    ],
)
def test_clear_deletes_what_was_chosen_and_nothing_that_runs(
    command: Command, conn: psycopg.Connection, words: list[str], left: list[int], said: str
) -> None:
    done = command("clear", *words, "--yes")
    assert done.stdout.splitlines()[-1] == said
    assert [row[0] for row in conn.execute("SELECT id FROM mail_jobs ORDER BY id")] == left
    stays = "1 that run stay: --force deletes those too"
    assert (stays in done.stderr) == (words in (["MailJob"], ["MailJob", "--queue", "bulk"], ["--all"]))


def test_rows_that_somebody_holds_are_left_and_counted(
    command: Command, conn: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM mail_jobs WHERE id = 5 FOR UPDATE")
        assert command("clear", "MailJob", "--status", "failed", "--yes").stdout.splitlines()[-1] == (
            "1 deleted, 1 left, since somebody holds them"
        )
        assert command("retry", "MailJob", "--status", "failed", "--yes").stdout == (
            "table mail_jobs: 1 left, since somebody holds them\n"
        )
    assert ids(conn, "failed") == [5]


def test_a_row_that_another_table_needs_stops_clear_in_one_line(command: Command, conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE mails (job_id bigint REFERENCES mail_jobs); INSERT INTO mails VALUES (7)")
    done = command("clear", "MailJob", "--yes")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        'cluster: update or delete on table "mail_jobs" violates foreign key'
    )
    assert len(ids(conn, "failed")) == 2


def test_many_rows_are_changed_batch_by_batch_and_those_that_come_meanwhile_are_left(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "BATCH", 100)
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))
    conn.execute("INSERT INTO mail_jobs (priority) SELECT 50 FROM generate_series(1, 1000)")
    conn.execute(
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO mail_jobs DEFAULT VALUES; RETURN NULL; END$$;"
        "CREATE TRIGGER more AFTER DELETE ON mail_jobs FOR EACH STATEMENT EXECUTE FUNCTION more()"
    )
    (oid,) = conn.execute("SELECT 'mail_jobs'::regclass::oid::bigint").fetchone() or (0,)
    table = selection.JobTable(oid, "mail_jobs")
    each = "DELETE FROM {table} WHERE id IN (SELECT id FROM picked) RETURNING 'deleted'"
    assert table.change(conn, selection.Selection(("not_started",)), each) == {"deleted": 1000}
    assert conn.execute("SELECT count(*) FROM mail_jobs").fetchone() == (10,)


def test_odd_names_are_quoted(conn: psycopg.Connection, tmp_path: Path) -> None:
    name = f"odd 100% {uuid4().hex[:6]}"
    conn.execute(f"SELECT cluster.create_job_table('\"{name}\"')".encode())
    conn.execute(f'INSERT INTO "{name}" DEFAULT VALUES'.encode())
    (oid,) = conn.execute("SELECT max(job_table::oid)::bigint FROM cluster.job_types").fetchone() or (0,)
    table = selection.JobTable(oid, f'"{name}"')
    cancel = "SELECT cluster.cancel(%(oid)s::oid, id)::text FROM picked"
    assert table.counts(conn, selection.Selection(("not_started",))) == {"not_started": 1}
    assert table.change(conn, selection.Selection(("not_started",)), cancel) == {"cancelled": 1}
