"""cluster.schedules as SQL sees it: what is refused, and what is filled in."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import errors

from cluster import statements
from tests.support.rows import run

TABLE = """
CREATE TABLE customers (id bigint PRIMARY KEY);
INSERT INTO customers VALUES (1);
SELECT cluster.create_job_table('report_jobs');
ALTER TABLE report_jobs ADD customer_id bigint REFERENCES customers, ADD kind text NOT NULL DEFAULT 'daily',
    ADD size integer CHECK (size > 0);
CREATE TABLE plain (id bigint);
"""


@pytest.fixture(autouse=True)
def _table(conn: psycopg.Connection) -> None:
    conn.execute(TABLE)


def schedule(conn: psycopg.Connection, **columns: Any) -> None:
    values = {"name": "reports", "job_table": "report_jobs", **columns}
    names = ", ".join(values)
    conn.execute(
        f"INSERT INTO cluster.schedules ({names}) VALUES ({', '.join(['%s'] * len(values))})".encode(),
        list(values.values()),
    )


def value(conn: psycopg.Connection, column: str, name: str = "reports") -> Any:
    return run(conn, f"SELECT {column} FROM cluster.schedules WHERE name = %s", name)[0][0]


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        ({}, errors.CheckViolation, "a schedule has either cron or every"),
        ({"cron": "@daily", "every": "1 day"}, errors.CheckViolation, "a schedule has either cron or every"),
        ({"every": "0"}, errors.CheckViolation, "every is 1 second to 3650 days"),
        ({"every": "10000 years"}, errors.CheckViolation, "every is 1 second to 3650 days"),
        ({"every": "1 month"}, errors.CheckViolation, "not in months"),
        ({"cron": "0 5 * *"}, errors.InvalidParameterValue, "has not five fields"),
        ({"cron": "@reboot"}, errors.InvalidParameterValue, "there is no alias @reboot"),
        ({"cron": "@daily", "time_zone": "berlin"}, errors.InvalidParameterValue, "Did you mean Europe/Berlin?"),
        ({"cron": "@daily", "starts_at": "2026-01-02", "ends_at": "2026-01-01"}, errors.CheckViolation, "ends_at is after"),
        ({"cron": "@daily", "starts_at": "infinity"}, errors.CheckViolation, "starts_at is a moment of our era"),
        ({"every": "1 minute", "jitter": "2 minutes"}, errors.CheckViolation, "jitter is not longer than every"),
        ({"every": "1 minute", "overlap": "maybe"}, errors.CheckViolation, "overlap is skip, queue_one, allow or cancel_running"),
        ({"every": "1 minute", "expect_within": "0"}, errors.CheckViolation, "expect_within is more than 0"),
        ({"every": "1 minute", "job_table": "plain"}, errors.WrongObjectType, "plain is not a job table"),
        ({"every": "1 minute", "job_values": "[]"}, errors.CheckViolation, "job_values is an object"),
        ({"every": "1 minute", "job_values": '{"colour": 1}'}, errors.UndefinedColumn, "table report_jobs has no column colour"),
        ({"every": "1 minute", "job_values": '{"status": "failed"}'}, errors.CheckViolation, "column status belongs"),
        ({"every": "1 minute", "job_values": '{"size": "big"}'}, errors.InvalidTextRepresentation, "invalid input syntax"),
        ({"every": "1 minute", "job_values": '{"size": 0}'}, errors.CheckViolation, "report_jobs_size_check"),
        ({"every": "1 minute", "job_values": '{"kind": null}'}, errors.NotNullViolation, "kind"),
        ({"every": "1 minute", "job_values": '{"customer_id": 2}'}, errors.ForeignKeyViolation, "customers"),
        ({"every": "1 minute", "job_values": '{"priority": 101}'}, errors.CheckViolation, "cluster_priority_range"),
    ],
)  # fmt: skip
def test_what_could_not_fire_is_refused_when_it_is_saved(
    columns: dict[str, str], error: type[Exception], words: str, conn: psycopg.Connection
) -> None:
    with pytest.raises(error) as refusal:
        schedule(conn, **columns)
    assert words in str(refusal.value)
    assert run(conn, "SELECT count(*) FROM report_jobs") == [(0,)]


def test_two_schedules_of_one_name_are_refused(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 minute")
    with pytest.raises(errors.UniqueViolation):
        schedule(conn, every="2 minutes")


def test_an_update_is_checked_like_an_insert(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 minute")
    for change in (
        "job_values = '{\"size\": 0}'",
        "cron = '@daily'",
        "every = '0'",
        "state = 'asleep'",
        "job_table = 'plain'",
    ):
        with pytest.raises(psycopg.Error):
            conn.execute(f"UPDATE cluster.schedules SET {change}".encode())


def test_the_trial_leaves_nothing_behind_and_a_unique_value_that_is_there_is_no_refusal(
    conn: psycopg.Connection,
) -> None:
    conn.execute("CREATE UNIQUE INDEX ON report_jobs (kind); INSERT INTO report_jobs (kind) VALUES ('daily')")
    schedule(conn, every="1 minute")
    assert run(conn, "SELECT count(*) FROM report_jobs") == [(1,)]


def test_an_interval_has_its_first_run_at_once_and_not_before_one_interval_has_passed(conn: psycopg.Connection) -> None:
    schedule(conn, every="2 minutes")
    assert value(conn, "next_run_at = created_at + interval '2 minutes' AND wake_at = next_run_at")
    schedule(conn, name="later", every="1 hour", starts_at="2090-01-01 00:10+00")
    assert value(conn, "next_run_at = '2090-01-01 00:10+00'", "later")


def test_times_that_a_node_has_to_find_are_counted_from_the_insert(conn: psycopg.Connection) -> None:
    schedule(conn, cron="0 5 * * *")
    assert value(conn, "next_run_at IS NULL AND plan_from = created_at AND wake_at = created_at")


def test_active_resets_the_state_and_its_opposite_stops_it(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 minute")
    conn.execute("UPDATE cluster.schedules SET state = 'stopped'")
    assert value(conn, "(next_run_at IS NULL, wake_at IS NULL, active)::text") == "(t,t,t)"
    conn.execute("UPDATE cluster.schedules SET active = true")
    assert value(conn, "state") == "active"
    assert value(conn, "wake_at IS NOT NULL")
    conn.execute("UPDATE cluster.schedules SET state = 'sleeping', next_run_at = now() + interval '1 day'")
    conn.execute("UPDATE cluster.schedules SET active = true")
    assert value(conn, "(state, plan_from IS NOT NULL, next_run_at IS NULL)::text") == "(active,t,t)"
    conn.execute("UPDATE cluster.schedules SET active = false")
    assert value(conn, "(state, wake_at)::text") == "(deactivated,)"
    conn.execute("UPDATE cluster.schedules SET active = true, run_once = true")
    assert value(conn, "state") == "run_once_waiting"
    assert value(conn, "next_run_at = now() + interval '1 minute'") is False


def test_a_pause_keeps_the_grid(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 hour")
    before = value(conn, "next_due_at")
    conn.execute("UPDATE cluster.schedules SET paused_at = now(), paused_reason = 'stocktaking'")
    assert value(conn, "(next_run_at, wake_at)::text") == "(,)"
    conn.execute("UPDATE cluster.schedules SET paused_at = NULL")
    assert value(conn, "next_due_at") == before
    assert value(conn, "plan_from IS NOT NULL")


def test_a_change_that_is_not_about_times_leaves_the_next_run_where_it_is(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 hour")
    before = value(conn, "next_run_at")
    conn.execute(
        """UPDATE cluster.schedules SET job_values = '{"size": 3}', expect_within = '1 day', overlap = 'allow'"""
    )
    assert value(conn, "next_run_at") == before


def test_a_run_now_leaves_the_grid_as_it_is(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 hour", job_values='{"size": 3}')
    before = value(conn, "next_run_at")
    ((job_id,),) = run(conn, "SELECT cluster.run_schedule('reports')")
    assert run(conn, "SELECT size, kind, schedule, status FROM report_jobs WHERE id = %s", job_id) == [
        (3, "daily", "reports", "not_started")
    ]
    assert value(conn, "next_run_at") == before
    assert run(conn, "SELECT job_id FROM cluster.schedule_runs") == [(job_id,)]


def test_what_is_due_is_found_by_the_index_however_many_there_are(conn: psycopg.Connection) -> None:
    conn.execute("""SET session_replication_role = replica;
        INSERT INTO cluster.schedules (name, job_table, every, wake_at)
            SELECT n::text, 'report_jobs', '1 hour', now() + n * interval '1 second' FROM generate_series(-50, 20000) AS n;
        SET session_replication_role = origin; ANALYZE cluster.schedules""")
    for name, rows in (("list_due_schedules", 51), ("find_next_schedule", 1)):
        text = statements.text(name).replace("%(limit)s", "200")
        plan = "\n".join(line for (line,) in run(conn, f"EXPLAIN {text}"))
        assert "using schedules_wake" in plan
        assert "Seq Scan" not in plan
        assert "Sort" not in plan
        assert len(run(conn, text)) == rows


def test_a_reload_ends_a_stop_and_leaves_all_others_as_they_are(conn: psycopg.Connection) -> None:
    states = ("active", "sleeping", "stopped", "deactivated", "run_once_waiting", "run_once_done")
    for state in states:
        schedule(conn, name=state, every="1 hour", run_once=state.startswith("run_once"))
        conn.execute("UPDATE cluster.schedules SET state = %s WHERE name = %s AND state <> %s", [state, state, state])
    before = dict(run(conn, "SELECT name, (state, next_run_at)::text FROM cluster.schedules"))
    assert run(conn, "SELECT cluster.reload_schedules()") == [(1,)]
    after = dict(run(conn, "SELECT name, (state, next_run_at)::text FROM cluster.schedules"))
    assert {name for name in states if after[name] != before[name]} == {"stopped"}
    assert value(conn, "state", "stopped") == "active"


def test_the_end_of_a_job_reaches_its_schedule_however_it_comes(conn: psycopg.Connection) -> None:
    """By hand here: a user who cancels, retries or deletes it, with rights on the job table alone."""
    schedule(conn, every="1 hour", on_error="keep")
    conn.execute("CREATE ROLE clerk_of_schedules; GRANT SELECT, UPDATE, DELETE ON report_jobs TO clerk_of_schedules;"
                 " GRANT SELECT ON cluster.job_types TO clerk_of_schedules")  # fmt: skip
    try:
        ((job_id,),) = run(conn, "SELECT cluster.run_schedule('reports')")
        conn.execute("SET ROLE clerk_of_schedules")
        run(conn, "SELECT cluster.cancel('report_jobs', %s)", job_id)
        conn.execute("RESET ROLE")
        assert value(conn, "last_outcome") == "cancelled"
        assert run(conn, "SELECT outcome, finished_at IS NOT NULL FROM cluster.schedule_runs") == [("cancelled", True)]
        conn.execute("SET ROLE clerk_of_schedules")
        run(conn, "SELECT cluster.retry('report_jobs', %s)", job_id)
        conn.execute("RESET ROLE")
        assert run(conn, "SELECT outcome, finished_at FROM cluster.schedule_runs") == [(None, None)]
        conn.execute("SET ROLE clerk_of_schedules; DELETE FROM report_jobs; RESET ROLE")
        assert value(conn, "last_outcome") == "deleted"
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY clerk_of_schedules; DROP ROLE clerk_of_schedules")


def test_a_row_that_only_says_that_it_belongs_to_a_schedule_tells_it_nothing(conn: psycopg.Connection) -> None:
    schedule(conn, every="1 hour")
    conn.execute("INSERT INTO report_jobs (schedule, scheduled_for) VALUES ('reports', now())")
    conn.execute("SELECT cluster.cancel('report_jobs', id) FROM report_jobs")
    assert value(conn, "last_outcome") is None


def test_a_role_needs_no_more_to_keep_schedules_than_the_documentation_says(conn: psycopg.Connection) -> None:
    conn.execute("""CREATE ROLE keeper_of_schedules;
        GRANT SELECT, INSERT, UPDATE, DELETE ON cluster.schedules TO keeper_of_schedules;
        GRANT SELECT, INSERT, DELETE ON cluster.schedule_runs TO keeper_of_schedules;
        GRANT SELECT, INSERT ON report_jobs TO keeper_of_schedules""")
    try:
        conn.execute("SET ROLE keeper_of_schedules")
        schedule(conn, cron="0 * * * *", time_zone="Europe/Berlin", job_values='{"size": 1}')
        conn.execute("UPDATE cluster.schedules SET paused_at = now()")
        assert run(conn, "SELECT cluster.run_schedule('reports') IS NOT NULL") == [(True,)]
        assert (
            len(run(conn, "SELECT * FROM cluster.backfill_schedule('reports', ARRAY[now() - interval '1 day'])")) == 1
        )
        conn.execute("DELETE FROM cluster.schedules; RESET ROLE; REVOKE INSERT ON report_jobs FROM keeper_of_schedules")
        conn.execute("SET ROLE keeper_of_schedules")
        with pytest.raises(errors.InsufficientPrivilege):
            schedule(conn, every="1 hour")
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY keeper_of_schedules; DROP ROLE keeper_of_schedules")
