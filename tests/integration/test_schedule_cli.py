"""`cluster schedule`."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from tests.support.rows import run

TABLE = """
SELECT cluster.create_job_table('report_jobs');
ALTER TABLE report_jobs ADD kind text NOT NULL DEFAULT 'daily', ADD size integer CHECK (size > 0), ADD tags jsonb;
UPDATE cluster.job_types SET name = 'ReportJob';
"""


class Commands:
    def __init__(self, url: str) -> None:
        self._environment = {"CLUSTER_DATABASE_URL": url, "COLUMNS": "80", "TZ": "UTC"}

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["schedule", *words], env=self._environment)

    def out(self, *words: str) -> str:
        """It works, and prints this."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *words: str) -> str:
        result = self.run(*words)
        assert result.exit_code in {1, 2}, result.output
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


@pytest.fixture
def cluster(conn: psycopg.Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    conn.execute(TABLE)
    return Commands(database_url)


def row(conn: psycopg.Connection, columns: str, name: str = "report") -> tuple[object, ...]:
    found: tuple[object, ...]
    (found,) = run(conn, f"SELECT {columns} FROM cluster.schedules WHERE name = %s", name)
    return found


def test_add_edit_and_remove(cluster: Commands, conn: psycopg.Connection) -> None:
    said = cluster.out("add", "report", "ReportJob", "kind=weekly", "size=3", "tags=[1]", "priority:=10", "--cron", "H 5 * * 1",
                       "--time-zone", "Europe/Berlin", "--jitter", "5m", "--expect-within", "1h", "--overlap", "allow")  # fmt: skip
    assert re.match(r"report: added; At 05:\d\d on Monday, Europe/Berlin; next \d{4}-", said)
    assert row(conn, "job_values, cron, time_zone, jitter, expect_within, overlap, source") == (
        {"kind": "weekly", "size": "3", "tags": [1], "priority": 10}, "H 5 * * 1", "Europe/Berlin", timedelta(minutes=5),
        timedelta(hours=1), "allow", "user",
    )  # fmt: skip
    cluster.out("edit", "report", "size=4", "--every", "90s", "--jitter", "0")
    assert row(conn, "job_values ->> 'size', cron, every") == ("4", None, timedelta(seconds=90))
    assert "nobody answered" in cluster.refused("remove", "report")
    cluster.out("remove", "report", "--yes")
    assert run(conn, "SELECT count(*) FROM cluster.schedules") == [(0,)]


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--cron", "61 * * * *"), "minute '61': allowed are 0-59"),
        (("--cron", "0 0 30 2 *"), "never matches"),
        (("--cron", "@daily", "--every", "1m"), "give one of --cron and --every"),
        ((), "give one of --cron and --every"),
        (("--cron", "@daily", "--time-zone", "berlin"), "did you mean 'Europe/Berlin'?"),
        (("--every", "0"), "should be longer than 0s"),
        (("--every", "1m", "--jitter", "2m"), "jitter must not be longer"),
        (("size=0", "--every", "1m"), "report_jobs_size_check"),
        (("size=big", "--every", "1m"), "invalid input syntax"),
        (("colour=red", "--every", "1m"), "has no column colour"),
        (("size", "--every", "1m"), "is not column=value"),
        (("--every", "1m", "--overlap", "maybe"), "overlap is skip"),
        (("--every", "1m", "--starts-at", "2030-01-01T00:00:00"), "needs its time zone"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_is_allowed(
    words: tuple[str, ...], refusal: str, cluster: Commands
) -> None:
    assert refusal in cluster.refused("add", "report", "ReportJob", *words)


def test_a_misspelt_name_is_told(cluster: Commands) -> None:
    cluster.out("add", "report", "ReportJob", "--every", "1h")
    assert "did you mean 'report'?" in cluster.refused("pause", "reprot")
    assert "did you mean 'ReportJob'?" in cluster.refused("add", "other", "ReprotJob", "--every", "1h")


def test_pause_resume_deactivate_and_activate(cluster: Commands, conn: psycopg.Connection) -> None:
    cluster.out("add", "report", "ReportJob", "--every", "1h")
    cluster.out("pause", "report", "--reason", "audit")
    assert re.search(r"‖ +report .* paused", cluster.out("list"))
    assert "paused reason: audit" in cluster.out("show", "report")
    cluster.out("resume", "report")
    cluster.out("deactivate", "report")
    assert row(conn, "state") == ("deactivated",)
    cluster.out("activate", "report")
    assert row(conn, "state") == ("active",)
    audit = "SELECT action, target, via, filter FROM cluster.audit WHERE action <> 'create' ORDER BY id"
    assert run(conn, audit)[0] == ("pause", "schedule report", "cli", {"reason": "audit"})
    assert [row[0] for row in run(conn, audit)] == ["pause", "resume", "deactivate", "activate"]


def test_run_now_prints_the_job(cluster: Commands, conn: psycopg.Connection) -> None:
    cluster.out("add", "report", "ReportJob", "--every", "1h")
    table, job_id = cluster.out("run", "report").split()
    assert run(conn, "SELECT schedule FROM report_jobs WHERE id = %s", int(job_id)) == [("report",)]
    assert table == "report_jobs"
    assert "not finished" in cluster.out("show", "report")


def test_list_has_room_in_80_columns_and_shows_state_words_and_next_run(
    cluster: Commands, conn: psycopg.Connection
) -> None:
    cluster.out("add", "report", "ReportJob", "--every", "1h")
    cluster.out(
        "add",
        "a-schedule-with-a-rather-long-name",
        "ReportJob",
        "--cron",
        "*/10 1,2,3 * * 1-5",
        "--time-zone",
        "America/New_York",
    )
    conn.execute("UPDATE cluster.schedules SET state = 'stopped' WHERE name LIKE 'a-%'")
    out = cluster.out("list")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert re.search(r"✔ +report +report_jobs +every 1 hour .* (59|60)m", out)
    assert re.search(r"⟳ +a-schedule-wi.* stopped", out)
    rows = json.loads(cluster.out("list", "--json"))
    assert [(found["name"], found["every"], found["state"]) for found in rows][1] == ("report", 3600.0, "active")


def test_next_shows_occurrences_with_their_offset_and_where_the_clock_is_changed(
    cluster: Commands, conn: psycopg.Connection
) -> None:
    cluster.out("add", "report", "ReportJob", "--cron", "30 12 * * *", "--time-zone", "Europe/Berlin")
    lines = cluster.out("next", "report", "-n", "300").splitlines()
    assert len(lines) == 300
    changed = [place for place, line in enumerate(lines) if "the clock was changed" in line]
    assert changed
    assert lines[changed[0]].split()[3] != lines[changed[0] - 1].split()[3]
    assert all(line.split()[2] == "12:30:00" for line in lines)
    assert len(json.loads(cluster.out("next", "report", "--json"))) == 10


def test_backfill_runs_what_is_missing_or_failed_and_nothing_twice(cluster: Commands, conn: psycopg.Connection) -> None:
    cluster.out("add", "report", "ReportJob", "--cron", "0 * * * *")
    today = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    first, last = (today - timedelta(hours=5)).isoformat(), (today - timedelta(hours=1)).isoformat()
    words = ("backfill", "report", "--from", first, "--to", last)
    assert len(cluster.out(*words, "--dry-run").splitlines()) == 5
    assert run(conn, "SELECT count(*) FROM report_jobs") == [(0,)]
    assert len(cluster.out(*words).splitlines()) == 5
    assert cluster.out(*words) == ""
    conn.execute("""UPDATE report_jobs SET status = 'running', locked_at = now();
        UPDATE report_jobs SET locked_at = NULL, finished_at = now(),
            status = CASE WHEN id = (SELECT min(id) FROM report_jobs) THEN 'failed' ELSE 'succeeded' END::cluster.job_status""")
    assert len(cluster.out(*words, "--failed").splitlines()) == 1
    assert cluster.out(*words, "--all") == ""
    assert run(conn, "SELECT count(*), count(DISTINCT scheduled_for) FROM report_jobs") == [(6, 5)]
    assert "give one of" in cluster.refused(*words, "--failed", "--all")


def test_reload_lets_go_on_what_has_stopped_and_is_seen_while_it_runs(
    cluster: Commands, conn: psycopg.Connection, tmp_path: Path
) -> None:
    cluster.out("add", "report", "ReportJob", "--every", "1h")
    cluster.out("add", "kept", "ReportJob", "--every", "1h")
    before = row(conn, "next_run_at", "kept")
    conn.execute("UPDATE cluster.schedules SET state = 'stopped' WHERE name = 'report'")
    assert cluster.out("reload") == "reloaded: 0 changed, 1 go on that had stopped\n"
    assert row(conn, "state") == ("active",)
    assert row(conn, "next_run_at", "kept") == before
    conn.execute("UPDATE cluster.schedule_service SET reloading_since = now()")
    assert "another reload is running" in cluster.refused("reload")
    assert "a reload has been running since" in cluster.run("list").output
    conn.execute("UPDATE cluster.schedule_service SET reloading_since = now() - interval '2 minutes'")
    cluster.out("reload")
    assert run(conn, "SELECT reloading_since IS NULL AND reloaded_at IS NOT NULL FROM cluster.schedule_service") == [
        (True,)
    ]


def test_a_schedule_of_the_code_is_not_edited_or_removed_here(cluster: Commands, conn: psycopg.Connection) -> None:
    cluster.out("add", "report", "ReportJob", "--every", "1h")
    conn.execute("UPDATE cluster.schedules SET source = 'code'")
    for words in (("edit", "report", "--every", "2h"), ("remove", "report", "--yes")):
        assert "belongs to its job class" in cluster.refused(*words)
    cluster.out("pause", "report")
