"""Nodes fire schedules: on time, once, whatever one of them does."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from cluster.coordinator.lease import Lease
from cluster.coordinator.schedules import Scheduler
from cluster.coordinator.session import TransientDatabaseError
from cluster.lease_clock import boottime
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until
from tests.support.rows import others_go_on, run

JOBS = """
from datetime import timedelta
import asyncio
from cluster import Job

class TickJob(Job):
    note: str = ""
    max_concurrency = None
    max_attempts = 2
    backoff = lambda attempt: timedelta(0)
    async def perform(self):
        if self.note == "fail":
            raise ValueError("no stock")
        if self.note == "wait":
            await asyncio.sleep(3600)
        print("for", self.scheduled_for, self.attempt, flush=True)

class GoodJob(Job):
    async def perform(self): ...
"""


def schedule(conn: psycopg.Connection, name: str = "tick", **columns: Any) -> None:
    values = {"name": name, "job_table": "tick_jobs", **columns}
    names = sql.SQL(", ").join(map(sql.Identifier, values))
    texts = sql.SQL(", ").join(map(sql.Literal, values.values()))
    conn.execute(sql.SQL("INSERT INTO cluster.schedules ({}) VALUES ({})").format(names, texts))


def due_now(conn: psycopg.Connection, name: str = "tick", ago: str = "0 s") -> None:
    """As if its next occurrence came now, or came some time ago."""
    conn.execute(
        "UPDATE cluster.schedules SET next_due_at = now() - %s::interval, next_run_at = now() - %s::interval WHERE name = %s",
        [ago, ago, name],
    )


def wait_runs(conn: psycopg.Connection, count: int, where: str = "true") -> None:
    wait_for(conn, f"SELECT count(*) >= {count} FROM cluster.schedule_runs WHERE {where}")


def value(conn: psycopg.Connection, column: str, name: str = "tick") -> Any:
    return run(conn, f"SELECT {column} FROM cluster.schedules WHERE name = %s", name)[0][0]


def test_an_interval_of_a_second_fires_on_its_grid_and_a_row_takes_effect_within_a_second(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(JOBS)
    schedule(conn, every="1 second")
    wait_runs(conn, 4, "outcome = 'succeeded'")
    rows = run(
        conn,
        "SELECT due_at, fired_at, job_id, started_at FROM cluster.schedule_runs WHERE finished_at IS NOT NULL ORDER BY due_at",
    )
    created = value(conn, "created_at")
    assert [(due - created).total_seconds() for due, *_ in rows] == list(range(1, len(rows) + 1))
    assert all(0 <= (fired - due).total_seconds() < 0.5 for due, fired, *_ in rows)
    assert run(conn, "SELECT DISTINCT status, queue, schedule FROM tick_jobs WHERE finished_at IS NOT NULL") == [
        ("succeeded", "default", "tick")
    ]
    assert f"for {rows[0][0].astimezone().isoformat(sep=' ')}"[:20] in node.output()
    samples = node.metrics()
    assert samples['cluster_schedule_fires_total{result="fired"}'] >= 4
    assert samples["cluster_schedule_lag_seconds_count"] >= 4


def test_a_cron_that_came_while_nobody_was_up_is_planned_from_its_insert_and_wrong_ones_are_deactivated(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    schedule(conn, cron="H 5 1 1 *", time_zone="Europe/Berlin")
    wait_for(conn, "SELECT next_run_at > now() AND plan_from IS NULL FROM cluster.schedules")
    schedule(conn, "odd", cron="61 * * * *")
    schedule(conn, "never", cron="0 0 30 2 *")
    schedule(conn, "shaky", cron="*/5 * * * *", jitter="6 minutes")
    wait_for(conn, "SELECT count(*) = 3 FROM cluster.schedules WHERE state = 'deactivated'")
    assert value(conn, "last_error", "odd").startswith("cron '61 * * * *': minute '61': allowed are 0-59")
    assert value(conn, "last_error", "never") == "cron '0 0 30 2 *' never matches: there is no such day"
    assert value(conn, "last_error", "shaky").startswith("jitter must not be longer than the shortest interval")
    assert run(conn, "SELECT count(*) FROM tick_jobs") == [(0,)]


def test_what_came_while_nobody_was_up_is_made_up_for_as_its_misfire_says(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    setup = """
        INSERT INTO cluster.schedules (name, job_table, every, misfire, overlap)
        SELECT m, 'tick_jobs', '1 hour', m, 'allow' FROM unnest('{one,all,skip}'::text[]) AS m;
        INSERT INTO cluster.schedules (name, job_table, every, misfire) VALUES ('in turn', 'tick_jobs', '1 hour', 'all');
        UPDATE cluster.schedules SET next_due_at = now() - interval '245 minutes', next_run_at = now() - interval '245 minutes';
    """
    run_node(JOBS, setup=setup)
    wait_for(conn, "SELECT bool_and(next_run_at > now()) FROM cluster.schedules")
    wait_runs(conn, 5, "name = 'in turn' AND outcome = 'succeeded'")
    fired = run(conn, "SELECT name, count(job_id) FROM cluster.schedule_runs GROUP BY name")
    assert dict(fired) == {"one": 1, "all": 5, "in turn": 5}
    assert dict(run(conn, "SELECT name, missed FROM cluster.schedules")) == {
        "one": 4,
        "all": 0,
        "skip": 5,
        "in turn": 0,
    }
    assert value(conn, "next_run_at - now() BETWEEN interval '54 minutes' AND interval '55 minutes'", "one")
    query = """SELECT bool_and(started_at >= before)
        FROM (SELECT started_at, lag(finished_at) OVER (ORDER BY due_at) AS before
              FROM cluster.schedule_runs WHERE name = 'in turn') AS runs"""
    assert run(conn, query) == [(True,)]


def test_one_whose_table_is_gone_or_refuses_is_deactivated_and_the_others_fire(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    for name in ("a", "bad", "c", "kept"):
        schedule(conn, name, every="1 hour", on_error="keep" if name == "kept" else "deactivate")
    conn.execute("SELECT cluster.create_job_table('doomed_jobs')")
    schedule(conn, "doomed", job_table="doomed_jobs", every="1 hour")
    conn.execute("""DROP TABLE doomed_jobs;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN IF NEW.schedule IN ('bad', 'kept') THEN RAISE 'not today'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON tick_jobs FOR EACH ROW EXECUTE FUNCTION refuse()""")
    conn.execute("UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now()")
    wait_for(conn, "SELECT count(*) = 5 FROM cluster.schedules WHERE wake_at IS NULL OR next_run_at > now()")
    assert run(conn, "SELECT name, state, last_error FROM cluster.schedules ORDER BY name") == [
        ("a", "active", None), ("bad", "deactivated", "not today"), ("c", "active", None),
        ("doomed", "deactivated", "its job table was dropped"), ("kept", "active", "not today"),
    ]  # fmt: skip
    assert run(conn, "SELECT name FROM cluster.schedule_runs ORDER BY name") == [("a",), ("c",)]
    others_go_on(conn)


def test_a_table_that_is_locked_holds_up_only_its_own_schedules_and_only_for_a_while(
    conn: psycopg.Connection, database_url: str, run_node: RunNode
) -> None:
    node = run_node(JOBS)
    schedule(conn, every="1 hour")
    schedule(conn, "good", job_table="good_jobs", every="1 hour")
    with psycopg.connect(database_url) as other:
        other.execute("LOCK tick_jobs")
        conn.execute("UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now()")
        wait_runs(conn, 1, "name = 'good'")
        wait_for(conn, "SELECT not_before > now() AND active FROM cluster.schedules WHERE name = 'tick'")
        wait_until(lambda: bool(node.log("schedule_postponed")), "it is told")
        other.rollback()
    wait_runs(conn, 1, "name = 'tick' AND outcome = 'succeeded'")


def test_overlap_says_what_becomes_of_an_occurrence_while_a_job_is_not_finished(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    policies = ("skip", "allow", "queue_one", "cancel_running")
    for overlap in policies:
        schedule(conn, overlap, every="1 hour", overlap=overlap, misfire="all", job_values='{"note": "wait"}')
        due_now(conn, overlap)
    wait_for(conn, "SELECT count(*) = 4 FROM tick_jobs WHERE status = 'running'")
    for overlap in policies:
        due_now(conn, overlap, ago="90 minutes" if overlap == "queue_one" else "0 s")
    statuses = "SELECT array_agg(status::text ORDER BY id) = %s::text[] FROM tick_jobs WHERE schedule = %s"
    wait_for(conn, statuses, ["{running,running}", "allow"])
    wait_for(conn, statuses, ["{cancelled,running}", "cancel_running"])
    wait_for(conn, "SELECT not_before > now() FROM cluster.schedules WHERE name = 'queue_one'")
    wait_runs(conn, 1, "name = 'skip' AND outcome = 'skipped' AND job_id IS NULL")
    assert run(conn, statuses, "{running}", "skip") == [(True,)]
    assert run(conn, statuses, "{running}", "queue_one") == [(True,)]
    conn.execute("SELECT cluster.cancel('tick_jobs', id) FROM tick_jobs WHERE schedule = 'queue_one'")
    wait_for(conn, statuses, ["{cancelled,running}", "queue_one"])
    assert dict(run(conn, "SELECT name, missed FROM cluster.schedules")) == {
        "skip": 1, "allow": 0, "queue_one": 1, "cancel_running": 0,
    }  # fmt: skip


def test_a_job_that_fails_for_good_deactivates_its_schedule_once_its_retries_are_used_up(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    schedule(conn, every="1 hour", job_values='{"note": "fail"}')
    schedule(conn, "kept", every="1 hour", on_error="keep", job_values='{"note": "fail"}')
    conn.execute("UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now()")
    wait_for(conn, "SELECT count(*) = 2 FROM cluster.schedules WHERE last_outcome = 'failed'")
    assert value(conn, "state") == "deactivated"
    assert value(conn, "state", "kept") == "active"
    assert "no stock" in value(conn, "last_error")
    assert run(conn, "SELECT DISTINCT attempts_count FROM tick_jobs") == [(2,)]


def test_a_schedule_without_a_success_in_time_is_overdue_until_there_is_one(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(JOBS)
    conn.execute("SELECT cluster.pause('tick_jobs'::regclass)")
    schedule(conn, every="1 hour", expect_within="1 second")
    due_now(conn)
    wait_for(conn, "SELECT overdue_since = expect_from + interval '1 second' FROM cluster.schedules")
    wait_until(lambda: bool(node.log("schedule_overdue")), "it is told")
    conn.execute("SELECT cluster.resume('tick_jobs'::regclass)")
    wait_for(conn, "SELECT overdue_since IS NULL AND last_outcome = 'succeeded' FROM cluster.schedules")
    assert value(conn, "expect_from") is None


def test_one_more_success_is_no_news_to_a_schedule_for_which_nothing_waits(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    schedule(conn, every="1 hour")
    for name, columns in {"watched": {"expect_within": "1 hour"}, "queues": {"overlap": "queue_one"}}.items():
        schedule(conn, name, every="1 hour", **columns)
    versions = "SELECT name, xmin::text FROM cluster.schedules"
    for finished in (3, 6):
        with conn.transaction():
            conn.execute("SELECT cluster.run_schedule(name) FROM cluster.schedules")
            before = set(run(conn, versions))
        wait_runs(conn, finished, "outcome = 'succeeded'")
    assert {name for name, _ in set(run(conn, versions)) - before} == {"queues", "watched"}


def test_a_schedule_that_was_changed_while_it_was_computed_is_left_to_the_next_look(conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.create_job_table('tick_jobs')")
    schedule(conn, every="1 hour")
    due_now(conn)
    ((due_at, revision),) = run(conn, "SELECT next_due_at, revision FROM cluster.schedules")
    plans = (
        f'[{{"name": "tick", "revision": {revision}, "due_at": "{due_at.isoformat()}", "missed": 0, "fire": [{{"due_at":'
        f' "{due_at.isoformat()}", "run_at": "{due_at.isoformat()}"}}]}}]'
    )
    conn.execute("UPDATE cluster.schedules SET overlap = 'allow'")
    assert run(conn, "SELECT * FROM cluster.fire_schedules(%s)", plans) == []
    assert run(conn, "SELECT count(*) FROM tick_jobs") == [(0,)]


def test_many_nodes_and_deaths_fire_every_occurrence_once(conn: psycopg.Connection, run_node: RunNode) -> None:
    nodes = [run_node(JOBS, processes=1) for _ in range(2)]
    conn.execute("""INSERT INTO cluster.schedules (name, job_table, every, misfire, overlap)
        SELECT 's' || n, 'tick_jobs', '1 second', 'all', 'allow' FROM generate_series(1, 20) AS n""")
    wait_runs(conn, 40)
    nodes[0].signal_all(signal.SIGKILL)
    wait_runs(conn, 100)
    conn.execute("UPDATE cluster.schedules SET paused_at = now()")
    faults = run(
        conn,
        """
        SELECT s.name, d.due FROM cluster.schedules AS s,
            generate_series(s.created_at + s.every, s.next_due_at - interval '1 ms', s.every) AS d (due)
        WHERE (SELECT count(*) FROM tick_jobs AS j WHERE j.schedule = s.name AND j.scheduled_for = d.due) <> 1
        UNION ALL
        SELECT schedule, scheduled_for FROM tick_jobs AS j WHERE NOT EXISTS (
            SELECT FROM cluster.schedule_runs AS r WHERE r.name = j.schedule AND r.due_at = j.scheduled_for AND r.job_id = j.id)""",
    )
    assert faults == []


def test_a_trigger_that_is_slow_or_refuses_at_the_commit_holds_up_only_its_own_schedules(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    schedule(conn, every="1 hour")
    schedule(conn, "slow", every="1 hour")
    schedule(conn, "good", job_table="good_jobs", every="1 hour")
    conn.execute("""
        CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(10); RETURN NEW; END $$;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too late for that'; END $$;
        CREATE TRIGGER linger BEFORE INSERT ON tick_jobs FOR EACH ROW WHEN (NEW.schedule = 'slow') EXECUTE FUNCTION linger();
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON tick_jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (NEW.schedule = 'tick') EXECUTE FUNCTION refuse();
        UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now()""")
    wait_runs(conn, 1, "name = 'good'")
    wait_for(conn, "SELECT state = 'deactivated' FROM cluster.schedules WHERE name = 'tick'")
    assert value(conn, "last_error") == "too late for that"
    wait_for(conn, "SELECT active AND not_before > now() FROM cluster.schedules WHERE name = 'slow'")


class Dies:
    """A session whose connection is lost around its statement number `at`: before it is sent, or before its answer is read."""

    def __init__(self, connection: psycopg.AsyncConnection, at: int, *, sends: bool) -> None:
        self._connection, self._left, self._sends = connection, at, sends
        self.closed = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Dies]:
        yield self

    async def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            if self._sends:
                await self._connection.execute(query, *arguments, **options)
            raise TransientDatabaseError("killed")
        return await self._connection.execute(query, *arguments, **options)


@pytest.mark.parametrize("sends", [False, True])
async def test_a_node_that_dies_at_any_statement_leaves_every_occurrence_to_be_fired_once(
    sends: bool, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    conn.execute("SELECT cluster.create_job_table('tick_jobs')")
    schedule(conn, every="1 hour", expect_within="1 second")
    schedule(conn, "cron", cron="0 * * * *")
    died = 0
    for at in range(20):
        conn.execute("TRUNCATE tick_jobs, cluster.schedule_runs")
        due_now(conn, ago="10 s")
        conn.execute("UPDATE cluster.schedules SET expect_from = NULL")
        conn.execute(
            "UPDATE cluster.schedules SET plan_from = now(), next_run_at = NULL, next_due_at = NULL WHERE name = 'cron'"
        )
        try:
            await scheduler(Dies(aconn, at, sends=sends)).tick()
        except TransientDatabaseError:
            died += 1
        for _ in range(3):
            await scheduler(Dies(aconn, 100, sends=False)).tick()
        assert run(conn, "SELECT count(*), count(DISTINCT scheduled_for) FROM tick_jobs") == [(1, 1)], at
        assert run(conn, "SELECT count(*) FROM cluster.schedule_runs AS r JOIN tick_jobs AS j ON j.id = r.job_id") == [
            (1,)
        ], at
        assert run(conn, "SELECT bool_and(next_run_at > now()) FROM cluster.schedules") == [(True,)], at
    assert died >= 5


def scheduler(session: Any) -> Scheduler:
    lease = Lease(uuid4(), boottime(), 60)
    return Scheduler(session, 60.0, lambda: False, lambda: lease)
