"""Unique jobs: one that waits for each value, whoever enqueues, and nothing lost for it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from cluster import Job
from cluster.errors import EnqueueError, SchemaMisfitError
from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.session_kinds import KINDS, settled

SOURCE = """
from cluster import Job

class RefreshJob(Job):
    customer_id: int | None = None
    note: str = ""
    unique = ("customer_id",)

    def perform(self):
        if self.note == "fails in a while":
            import time
            time.sleep(1)
            raise RuntimeError
"""


class FreeJob(Job):
    customer_id: int | None = None
    note: str = ""

    table = "refresh_jobs"

    def perform(self) -> None: ...


class RefreshJob(FreeJob):
    unique = ("customer_id",)


class WholeJob(RefreshJob):
    unique_while_running = True


@pytest.fixture
def table(conn: psycopg.Connection) -> psycopg.Connection:
    migrate_jobs(conn, [RefreshJob])
    return conn


def rows(conn: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return conn.execute(query.encode()).fetchall()


def indexes(conn: psycopg.Connection) -> list[str]:
    found = rows(conn, "SELECT indexdef FROM pg_indexes WHERE indexname = 'refresh_jobs_unique'")
    return [definition.partition(" WHERE ")[2] for (definition,) in found]


EACH_ADAPTER = [
    "psycopg",
    "psycopg-async",
    "core-pg8000",
    "session-psycopg",
    "async-session-asyncpg",
    "django",
    "asyncpg",
]


@pytest.mark.parametrize("kind", EACH_ADAPTER)
async def test_the_job_that_waits_is_returned_and_said_to_be_there(
    table: psycopg.Connection, database_url: str, kind: str
) -> None:
    async with KINDS[kind](database_url) as opened:
        first = await settled(RefreshJob(customer_id=1).perform_later(opened.session, delay=timedelta(hours=1)))
        again = await settled(RefreshJob(customer_id=1, note="later").perform_later(opened.session))
        other = await settled(RefreshJob(customer_id=2).perform_later(opened.session))
        jobs = [RefreshJob(customer_id=i) for i in (1, 2, 3, 3, 4)]
        assert await settled(RefreshJob.perform_many(opened.session, jobs)) == 2
        await settled(opened.end(True))
    assert (first.is_new, again.is_new, other.is_new) == (True, False, True)
    assert again.id == first.id != other.id
    assert rows(table, "SELECT customer_id, note FROM refresh_jobs ORDER BY 1") == [(1, ""), (2, ""), (3, ""), (4, "")]


def test_any_language_enqueues_on_conflict_do_nothing(table: psycopg.Connection) -> None:
    for _ in range(2):
        table.execute("INSERT INTO refresh_jobs (customer_id) VALUES (1) ON CONFLICT DO NOTHING")
        table.execute(*RefreshJob(customer_id=2).insert())
    assert rows(table, "SELECT customer_id FROM refresh_jobs ORDER BY 1") == [(1,), (2,)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        table.execute("INSERT INTO refresh_jobs (customer_id) VALUES (1)")


def test_no_value_is_like_no_other(table: psycopg.Connection) -> None:
    assert RefreshJob().perform_later(table).id != RefreshJob().perform_later(table).id


def test_a_change_while_the_job_runs_enqueues_another_even_if_it_fails_then(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(SOURCE, processes=1)
    first = RefreshJob(customer_id=1, note="fails in a while").perform_later(conn)
    wait_for(conn, "SELECT status = 'running' FROM refresh_jobs")
    behind = RefreshJob(customer_id=1).perform_later(conn, delay=timedelta(hours=1))
    assert (behind.is_new, RefreshJob(customer_id=1).perform_later(conn).id) == (True, behind.id)
    wait_for(conn, "SELECT status = 'retry' FROM refresh_jobs WHERE id = %s", [first.id])
    assert behind.status(conn) == "scheduled"


def test_by_choice_one_that_runs_is_in_the_way_too(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [WholeJob])
    first = WholeJob(customer_id=1).perform_later(conn)
    running = "locked_by = gen_random_uuid(), locked_at = now(), started_at = now()"
    for status, rest in (("running", running), ("retry", "locked_by = NULL, locked_at = NULL, started_at = NULL")):
        rows(conn, f"UPDATE refresh_jobs SET status = '{status}', {rest} RETURNING id")
        again = WholeJob(customer_id=1).perform_later(conn)
        assert (again.id, again.is_new) == (first.id, False)


def test_two_that_enqueue_at_once_get_the_same_job(table: psycopg.Connection, database_url: str) -> None:
    found: list[RefreshJob] = []

    def enqueue() -> None:
        with psycopg.connect(database_url) as other:
            found.append(RefreshJob(customer_id=1).perform_later(other))

    with psycopg.connect(database_url) as connection:
        first = RefreshJob(customer_id=1).perform_later(connection)
        thread = threading.Thread(target=enqueue)
        thread.start()
        wait_for(
            table,
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    thread.join()
    assert [(job.id, job.is_new) for job in found] == [(first.id, False)]


def test_migrate_makes_changes_and_drops_the_index_and_no_more(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [RefreshJob])
    assert len(indexes(conn)) == 1
    assert "running" not in indexes(conn)[0]
    assert migrate_jobs(conn, [RefreshJob]) == []
    migrate_jobs(conn, [WholeJob])
    assert "running" in indexes(conn)[0]
    migrate_jobs(conn, [FreeJob])
    assert indexes(conn) == []


def test_jobs_that_are_there_twice_are_named_before_anything_is_done(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [FreeJob])
    FreeJob.perform_many(conn, [FreeJob(customer_id=7), FreeJob(customer_id=7)])
    with pytest.raises(
        SchemaMisfitError, match="several jobs of customer_id 7 have not finished, so they can't be unique"
    ):
        migrate_jobs(conn, [RefreshJob])
    with pytest.raises(EnqueueError, match="table refresh_jobs has no unique index yet: run `cluster migrate`"):
        RefreshJob(customer_id=1).perform_later(conn)


def test_an_index_of_ones_own_refuses_as_ever(table: psycopg.Connection) -> None:
    table.execute("CREATE UNIQUE INDEX mine ON refresh_jobs (note) WHERE status = 'not_started'")
    RefreshJob(customer_id=1).perform_later(table)
    with pytest.raises(psycopg.errors.UniqueViolation, match="mine"):
        RefreshJob(customer_id=2).perform_later(table)
