"""What jobs say of their schedules: each promise of the guide on recurring jobs that these come from."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

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


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("OK", ("active", True, "succeeded", None)),
        ("None", ("active", True, "succeeded", None)),
        ("SLEEP", ("sleeping", True, "SLEEP", None)),
        ("STOP", ("stopped", True, "STOP", None)),
        ("EXIT", ("deactivated", False, "EXIT", None)),
        ("odd", ("deactivated", False, "invalid", r"perform returned 'pumpkin\x00'")),
        ("Cancel", ("active", True, "cancelled", None)),
        ("Fail", ("deactivated", False, "failed", "no stock")),
    ],
)
def test_a_job_return_determines_how_its_schedule_goes_on(
    what: str, found: tuple[Any, ...], conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    schedule(conn, what)
    fire(conn)
    assert state(conn) == found
    goes_on = what in {"OK", "None", "SLEEP", "Cancel"}
    assert run(conn, "SELECT wake_at IS NOT NULL FROM cluster.schedules") == [(goes_on,)]


def test_failure_to_return_a_valid_status_deactivates_where_the_class_is_strict(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    conn.execute("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('say', 'strict_jobs', '2 hours')")
    fire(conn)
    assert state(conn) == ("deactivated", False, "invalid", "perform returned None")
    assert run(conn, "SELECT status FROM strict_jobs") == [("succeeded",)]


def test_sleep_runs_again_24_hours_after_the_start_of_the_last_run(conn: psycopg.Connection, run_node: RunNode) -> None:
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


def test_sleep_reaches_the_schedule_of_a_type_whose_successes_are_deleted(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(JOBS)
    conn.execute("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('say', 'brief_jobs', '2 hours')")
    fire(conn)
    assert state(conn)[0] == "sleeping"


def test_a_deactivated_schedule_runs_again_once_it_is_active(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    schedule(conn, "EXIT")
    fire(conn)
    conn.execute("UPDATE cluster.schedules SET active = true")
    assert state(conn) == ("active", True, "EXIT", None)
    wait_for(conn, "SELECT next_run_at > now() FROM cluster.schedules")


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


def test_a_job_without_a_schedule_may_return_the_same_words(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    for what in ("STOP", "odd"):
        conn.execute("INSERT INTO say_jobs (what) VALUES (%s)", [what])
    wait_for(conn, "SELECT count(*) = 2 FROM say_jobs WHERE status = 'succeeded'")
