"""Jobs of nodes that are gone, however that came about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest

from cluster import Job
from cluster.coordinator.rescue import Rescuer
from cluster.coordinator.session import Session
from cluster.migrate import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

STATUS = "SELECT status::text FROM rescued_jobs WHERE id = %s"
HOLD_LOCK_FAILS_ONCE = """
CREATE SEQUENCE tries;
CREATE FUNCTION pg_try_advisory_lock(class integer, object integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF class = 1753 AND nextval('tries') = 1 THEN
        RAISE EXCEPTION 'as in a shutdown' USING ERRCODE = 'admin_shutdown';
    END IF;
    RETURN pg_catalog.pg_try_advisory_lock(class, object);
END $$;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$;
"""
SOURCE = """
from cluster import Job

class RescuedJob(Job):
    async def perform(self): ...
"""


class RescuedJob(Job):
    async def perform(self) -> None: ...


@pytest.fixture
async def rescuer(conn: psycopg.Connection, database_url: str) -> AsyncIterator[Rescuer]:
    migrate_jobs(conn, [RescuedJob])
    watching, writing = Session(database_url, "heartbeat"), Session(database_url, "finish")
    yield Rescuer(watching, writing)
    await watching.close()
    await writing.close()


def insert_running(conn: psycopg.Connection) -> list[int]:
    """A job under a node that nobody knows."""
    row = conn.execute("INSERT INTO rescued_jobs DEFAULT VALUES RETURNING id").fetchone()
    assert row is not None
    conn.execute(
        "UPDATE rescued_jobs SET status = 'running', locked_at = now(), locked_by = %s, attempts_count = 1 WHERE id = %s",
        [uuid4(), row[0]],
    )
    return [row[0]]


async def test_a_sweep_that_is_asked_for_comes_with_the_next_tick(conn: psycopg.Connection, rescuer: Rescuer) -> None:
    await rescuer.tick()  # the first one sweeps
    job = insert_running(conn)
    await rescuer.tick()
    assert conn.execute(STATUS, job).fetchone() == ("running",), "the next one is in seconds"
    rescuer.sweep_soon()
    await rescuer.tick()
    assert conn.execute(STATUS, job).fetchone() == ("not_started",)


async def test_a_sweep_that_fails_is_made_up_for(conn: psycopg.Connection, rescuer: Rescuer) -> None:
    await rescuer.tick()
    job = insert_running(conn)
    rescuer.sweep_soon()
    conn.execute("ALTER TABLE cluster.job_types RENAME TO hidden")
    with pytest.raises(psycopg.errors.UndefinedTable):
        await rescuer.tick()
    conn.execute("ALTER TABLE cluster.hidden RENAME TO job_types")
    await rescuer.tick()
    assert conn.execute(STATUS, job).fetchone() == ("not_started",)


async def test_a_sweep_that_is_asked_for_during_another_comes_after_it(
    conn: psycopg.Connection, rescuer: Rescuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, jobs = rescuer._sweep, list[int]()

    async def sweep_and_ask() -> None:
        await sweep()
        if not jobs:
            jobs.extend(insert_running(conn))
            rescuer.sweep_soon()

    monkeypatch.setattr(rescuer, "_sweep", sweep_and_ask)
    await rescuer.tick()
    assert conn.execute(STATUS, jobs).fetchone() == ("running",)
    await rescuer.tick()
    assert conn.execute(STATUS, jobs).fetchone() == ("not_started",)


def test_a_node_whose_session_fails_right_after_it_has_registered_claims_all_the_same(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(SOURCE, setup=HOLD_LOCK_FAILS_ONCE)
    wait_for(conn, "SELECT last_value > 1 FROM tries")
    conn.execute("INSERT INTO rescued_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM rescued_jobs")
