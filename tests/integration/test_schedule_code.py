"""Schedules that classes declare: rows of them are made by migrate, and stopped by operators."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, cast

import psycopg
import pytest
from pydantic import Field

from cluster import Cron, Every, Job
from cluster.errors import JobDefinitionError, SchemaMisfitError
from cluster.migration import migrate_jobs, planned_changes
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import run


def declare(schedule: Any, name: str = "StockJob") -> type[Job]:
    async def perform(self: Job) -> None: ...

    return type(
        name,
        (Job,),
        {
            "__annotations__": {"size": Annotated[int, Field(ge=1)], "tags": list[str]},
            "size": 1, "tags": [], "schedule": schedule, "table": "stock_jobs", "perform": perform, "__module__": __name__,
        },
    )  # fmt: skip


def rows(conn: psycopg.Connection, columns: str = "name, cron, every, source") -> list[Any]:
    return run(conn, f"SELECT {columns} FROM cluster.schedules ORDER BY name")


def test_migrate_makes_rows_of_what_classes_declare_and_takes_them_away_again(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [declare(Cron("H 5 * * *", time_zone="Europe/Berlin", values={"size": 3}))])
    assert rows(conn, "name, cron, time_zone, job_values, source, job_table::text") == [
        ("StockJob", "H 5 * * *", "Europe/Berlin", {"size": 3}, "code", "stock_jobs")
    ]
    migrate_jobs(conn, [declare({"often": Every(minutes=2), "nightly": Cron("@daily")})])
    assert rows(conn) == [
        ("StockJob.nightly", "@daily", None, "code"), ("StockJob.often", None, timedelta(minutes=2), "code"),
    ]  # fmt: skip
    migrate_jobs(conn, [declare(None)])
    assert rows(conn) == []


def test_migrating_twice_changes_nothing_and_keeps_the_remaining_interval(conn: psycopg.Connection) -> None:
    job_class = declare(
        {"a": Every(hours=1, jitter=timedelta(minutes=1)), "b": Every(hours=2, values={"priority": 10})}
    )
    migrate_jobs(conn, [job_class])
    before = rows(conn, "next_run_at, wake_at, revision")
    assert planned_changes(conn, [job_class]) == []
    migrate_jobs(
        conn,
        [declare({"a": Every(hours=1, jitter=timedelta(minutes=1)), "b": Every(hours=2, values={"priority": 11})})],
    )
    assert [row[:2] for row in rows(conn, "next_run_at, wake_at, revision")] == [row[:2] for row in before]


def test_what_an_operator_has_paused_stays_paused_over_deploys(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [declare(Every(hours=1))])
    conn.execute("UPDATE cluster.schedules SET paused_at = now(), paused_reason = 'audit'")
    migrate_jobs(conn, [declare(Every(hours=2))])
    assert rows(conn, "paused_reason, next_run_at, every") == [("audit", None, timedelta(hours=2))]


def test_a_schedule_of_a_user_is_not_taken_over_or_removed(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [declare(None)])
    conn.execute("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('StockJob', 'stock_jobs', '1 hour')")
    migrate_jobs(conn, [declare(None)])
    assert len(rows(conn)) == 1
    with pytest.raises(SchemaMisfitError, match="schedule StockJob of StockJob is there already"):
        migrate_jobs(conn, [declare(Every(hours=1))])


def test_a_class_under_a_new_name_does_not_run_twice(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [declare(Every(hours=1))])
    migrate_jobs(conn, [declare(Every(hours=1), "GoodsJob")])
    assert rows(conn, "name, next_run_at > now() + interval '59 minutes'") == [("GoodsJob", True)]


def test_a_dry_run_prints_the_rows_also_where_there_is_no_schema_yet(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        planned = planned_changes(connection, [declare(Cron("@daily"))])
    assert any("INSERT INTO cluster.schedules" in statement for statement in planned)


def test_values_that_the_class_refuses_are_refused_by_migrate(conn: psycopg.Connection) -> None:
    with pytest.raises(SchemaMisfitError, match=r"schedule StockJob: StockJob: size: Input should be greater"):
        migrate_jobs(conn, [declare(Every(hours=1, values={"size": 0}))])


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lambda: "0 5 * * *", "must be Cron(…), Every(…), or a dict"),
        (lambda: [Every(hours=1)], "must be Cron(…), Every(…), or a dict"),
        (lambda: Cron("61 * * * *"), "minute '61': allowed are 0-59"),
        (lambda: Every(seconds=0.5), "every must be 1 second"),
        (Every, "every must be 1 second"),
        (lambda: Cron("@daily", time_zone="berlin"), "did you mean 'Europe/Berlin'?"),
        (
            lambda: Cron("@daily", overlap=cast("Any", "maybe")),
            "overlap is one of skip, queue_one, allow, cancel_running",
        ),
        (lambda: Cron("@daily", starts_at=datetime(2030, 1, 1)), "need a time zone"),  # noqa: DTZ001 - that is the point
        (lambda: {"": Every(hours=1)}, "must be Cron(…), Every(…), or a dict"),
    ],
)
def test_a_wrong_declaration_is_refused_when_the_class_is_defined(schedule: Callable[[], Any], words: str) -> None:
    with pytest.raises(JobDefinitionError) as error:
        declare(schedule())
    assert words in str(error.value)


def test_a_job_of_a_schedule_knows_the_time_there(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node("""
from cluster import Every, Job

class ClockJob(Job):
    schedule = Every(seconds=1, time_zone="Asia/Kathmandu", overlap="allow")
    def perform(self):
        now = self.now
        print("utc", now.minute(), now.hour(), now.day(), now.day_num(), now.day_month(), now.week_num(), now.month(),
              now.month_num(), "local", now.hour(local=True), now.minute(local=True), flush=True)
""")
    wait_for(conn, "SELECT count(*) > 0 FROM clock_jobs WHERE status = 'succeeded'")
    words = node.output().split("\n")[0].split()
    ((finished,),) = run(conn, "SELECT min(started_at) FROM clock_jobs WHERE status = 'succeeded'")
    utc = finished.astimezone(UTC)
    parts = [utc.strftime("%a"), utc.isoweekday(), utc.day, int(utc.strftime("%W")), utc.strftime("%b"), utc.month]
    assert words[3:9] == list(map(str, parts))
    minutes = int(words[1]) + 60 * int(words[2])
    assert (int(words[11]) + 60 * int(words[10]) - minutes) % 1440 == 345


CODE = """
from cluster import Every, Job

class {name}(Job):
    schedule = Every(hours=1)
    async def perform(self): ...
"""


class Application:
    """A folder with a package of job classes, one module each."""

    def __init__(self, folder: Path, url: str, package: str = "jobs") -> None:
        self._folder, self._package = folder, folder / package
        self._environment = {**os.environ, "CLUSTER_DATABASE_URL": url, "CLUSTER_JOBS": package}
        self._package.mkdir(parents=True)
        (self._package / "__init__.py").touch()

    def has(self, *names: str) -> None:
        """These classes and no others."""
        for path in self._package.glob("*job.py"):
            path.unlink()
        for name in names:
            (self._package / f"{name.lower()}.py").write_text(CODE.format(name=name))

    def run(self, *words: str, **environment: str) -> str:
        """The output of a command that succeeds."""
        command = [sys.executable, "-m", "cluster", *words]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def application(database_url: str, tmp_path: Path) -> Application:
    return Application(tmp_path / "app", database_url)


def test_schedules_of_a_class_that_has_left_the_code_are_removed_at_migrate_and_their_history_stays(
    conn: psycopg.Connection, application: Application
) -> None:
    application.has("StockJob", "ReportJob")
    application.run("migrate")
    conn.execute("SELECT cluster.run_schedule('ReportJob')")
    conn.execute("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('by hand', 'report_jobs', '1 hour')")
    application.has("StockJob")
    assert "DELETE FROM cluster.schedules WHERE name = 'ReportJob'" in application.run("migrate", "--dry-run")
    assert len(rows(conn)) == 3
    said = application.run("migrate")
    assert "schedule ReportJob: removed, since no class in jobs.reportjob declares it any more" in said
    assert [row[0] for row in rows(conn)] == ["StockJob", "by hand"]
    assert run(conn, "SELECT name, job_id IS NOT NULL FROM cluster.schedule_runs") == [("ReportJob", True)]


def test_a_reload_removes_them_as_well(conn: psycopg.Connection, application: Application) -> None:
    application.has("StockJob", "ReportJob")
    application.run("migrate")
    application.has("StockJob")
    assert application.run("schedule", "reload").startswith("reloaded: 1 changed")
    assert [row[0] for row in rows(conn)] == ["StockJob"]


def test_migrating_a_part_of_the_code_or_another_application_leaves_the_schedules_of_the_rest(
    conn: psycopg.Connection, application: Application, database_url: str, tmp_path: Path
) -> None:
    application.has("StockJob", "ReportJob")
    application.run("migrate")
    application.run("migrate", CLUSTER_JOBS="jobs.stockjob")
    other = Application(tmp_path / "other", database_url, "jobs_of_others")
    other.has("MailJob")
    other.run("migrate")
    other.run("schedule", "reload")
    assert [row[0] for row in rows(conn)] == ["MailJob", "ReportJob", "StockJob"]


def test_what_nodes_without_any_of_our_classes_serve_is_left_and_named(
    conn: psycopg.Connection, application: Application, database_url: str, tmp_path: Path
) -> None:
    """Another application whose package has the same name. An older version of ours serves our other classes too."""
    other = Application(tmp_path / "other", database_url)
    other.has("MailJob")
    other.run("migrate")
    application.has("StockJob", "ReportJob")
    nodes = """INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, slots, lease_until)
        SELECT gen_random_uuid(), 'here', 1, '0.1.0', '{}', string_to_array(jobs, ' '), 1, now() + interval '1 hour'
        FROM unnest(%s::text[]) AS jobs"""
    conn.execute(nodes, [["MailJob", "StockJob ReportJob"]])
    assert "schedule MailJob: left as it is, though no class in jobs.mailjob declares it here" in application.run(
        "migrate"
    )
    application.has("StockJob")
    said = application.run("migrate")
    assert "schedule ReportJob: removed" in said
    assert "schedule MailJob: left as it is" in said
    assert [row[0] for row in rows(conn)] == ["MailJob", "StockJob"]
