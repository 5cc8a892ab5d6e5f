"""Schedules that classes declare: rows of them are made by migrate, and stopped by operators."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
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
