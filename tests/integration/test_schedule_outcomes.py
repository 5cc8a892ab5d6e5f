"""What jobs say of their schedules: each promise of the guide on recurring jobs that these come from."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import run

JOBS = """
from datetime import timedelta
from cluster import Job, Next, Fail, Cancel, Snooze

class SayJob(Job):
    what: str
    max_attempts = 1
    def perform(self):
        print(self.what, self.scheduled_for)
        return {"OK": self.OK, "SLEEP": self.SLEEP, "STOP": self.STOP, "EXIT": self.EXIT, "None": None, "odd": "pumpkin\\0",
                "Cancel": Cancel("enough"), "Fail": Fail("no stock")}[self.what]

class StrictJob(Job):
    strict_outcome = True
    async def perform(self): ...

class BriefJob(Job):
    retention = timedelta(0)
    async def perform(self):
        return self.SLEEP
"""


def schedule(conn: psycopg.Connection, what: str, name: str = "say", more: str = "", value: str = "") -> None:
    conn.execute(
        f"INSERT INTO cluster.schedules (name, job_table, job_values, every{more})"
        f" VALUES (%s, 'say_jobs', jsonb_build_object('what', %s::text), '2 hours'{value})".encode(),
        [name, what],
    )


def fire(conn: psycopg.Connection, name: str = "say") -> None:
    """Its next occurrence comes now; returns when its job has ended."""
    conn.execute("UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now() WHERE name = %s", [name])
    wait_for(
        conn,
        "SELECT last_run_at IS NOT NULL AND last_outcome IS NOT NULL FROM cluster.schedules WHERE name = %s",
        [name],
    )


def state(conn: psycopg.Connection, name: str = "say") -> tuple[Any, ...]:
    row: tuple[Any, ...]
    (row,) = run(conn, "SELECT state, active, last_outcome, last_error FROM cluster.schedules WHERE name = %s", name)
    return row


OUTCOMES = {
    "OK": ("active", True, "succeeded", None),
    "None": ("active", True, "succeeded", None),
    "SLEEP": ("sleeping", True, "SLEEP", None),
    "STOP": ("stopped", True, "STOP", None),
    "EXIT": ("deactivated", False, "EXIT", None),
    "odd": ("deactivated", False, "invalid", r"perform returned 'pumpkin\x00'"),
    "Cancel": ("active", True, "cancelled", None),
    "Fail": ("deactivated", False, "failed", "no stock"),
}


def test_job_returns_determine_how_a_schedule_goes_on(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    for what in OUTCOMES:
        schedule(conn, what, name=what)
    conn.execute("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('strict', 'strict_jobs', '2 hours')")
    conn.execute("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('brief', 'brief_jobs', '2 hours')")
    conn.execute("UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now()")
    wait_for(conn, "SELECT bool_and(last_outcome IS NOT NULL) FROM cluster.schedules")
    assert {what: state(conn, what) for what in OUTCOMES} == OUTCOMES
    # failure to return a valid status deactivates, where the class is strict; the job has succeeded all the same
    assert state(conn, "strict") == ("deactivated", False, "invalid", "perform returned None")
    assert run(conn, "SELECT status FROM strict_jobs") == [("succeeded",)]
    # of a type whose successes are deleted the schedule is told as well
    assert state(conn, "brief")[0] == "sleeping"
    goes_on = run(conn, "SELECT name FROM cluster.schedules WHERE wake_at IS NOT NULL")
    assert {name for (name,) in goes_on} == {"OK", "None", "SLEEP", "Cancel", "brief"}


def test_sleep_runs_again_24_hours_after_the_start_of_the_last_run_and_exit_once_it_is_active(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    schedule(conn, "SLEEP")
    fire(conn)
    assert run(
        conn,
        "SELECT next_run_at - j.started_at = interval '24 hours' FROM cluster.schedules, say_jobs AS j WHERE j.schedule = 'say'",
    ) == [(True,)]
    conn.execute('UPDATE cluster.schedules SET job_values = \'{"what": "OK"}\', last_outcome = NULL')
    fire(conn)
    assert state(conn)[0] == "active"
    # a job without a schedule may say the same
    for what in ("STOP", "odd"):
        conn.execute("INSERT INTO say_jobs (what) VALUES (%s)", [what])
    wait_for(conn, "SELECT count(*) = 2 FROM say_jobs WHERE status = 'succeeded' AND schedule IS NULL")
    # what is deactivated runs again once it is active
    schedule(conn, "EXIT", "exit")
    fire(conn, "exit")
    conn.execute("UPDATE cluster.schedules SET active = true")
    assert state(conn, "exit") == ("active", True, "EXIT", None)
    wait_for(conn, "SELECT next_run_at > now() FROM cluster.schedules WHERE name = 'exit'")


def test_stop_and_run_once_last_until_the_cluster_starts_anew(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(JOBS)
    schedule(conn, "STOP")
    schedule(conn, "OK", "once", ", run_once", ", true")
    assert state(conn, "once")[0] == "run_once_waiting"
    fire(conn)
    fire(conn, "once")
    assert [state(conn)[0], state(conn, "once")[0]] == ["stopped", "run_once_done"]
    other = run_node(JOBS)  # joins a cluster that runs
    wait_for(conn, "SELECT count(*) = 2 FROM cluster.nodes WHERE state = 'live'")
    node.stop()
    assert [state(conn)[0], state(conn, "once")[0]] == ["stopped", "run_once_done"]
    other.stop()
    run_node(JOBS)
    wait_for(conn, "SELECT boots = 2 FROM cluster.schedule_service")
    assert [state(conn)[0], state(conn, "once")[0]] == ["active", "run_once_waiting"]
    assert run(conn, "SELECT next_run_at > now() + interval '1 hour' FROM cluster.schedules WHERE name = 'once'") == [
        (True,)
    ]
