"""Jobs of nodes that are gone, however that came about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import psycopg
import pytest

from cluster import Job, statements
from cluster.coordinator.rescue import Rescuer
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles
from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.gate import GatedSession
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
from cluster import Job, statements

class RescuedJob(Job):
    async def perform(self): ...
"""


class RescuedJob(Job):
    async def perform(self) -> None: ...


@pytest.fixture
async def rescuer(conn: psycopg.Connection, database_url: str) -> AsyncIterator[Rescuer]:
    migrate_jobs(conn, [RescuedJob])
    watching, writing = Session(lambda: database_url, "heartbeat"), Session(lambda: database_url, "finish")
    yield Rescuer(watching, writing, Troubles())
    await watching.close()
    await writing.close()


class OtherRescuedJob(Job):
    async def perform(self) -> None: ...


def insert_running(conn: psycopg.Connection, node: UUID | None = None) -> list[int]:
    """A job under a node, or under one that nobody knows."""
    row = conn.execute("INSERT INTO rescued_jobs DEFAULT VALUES RETURNING id").fetchone()
    assert row is not None
    conn.execute(
        "UPDATE rescued_jobs SET status = 'running', locked_at = now(), locked_by = %s, attempts_count = 1 WHERE id = %s",
        [node or uuid4(), row[0]],
    )
    return [row[0]]


def insert_node(conn: psycopg.Connection, state: str) -> UUID:
    node = uuid4()
    conn.execute(
        "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, state) "
        "VALUES (%s, 'h', 1, '0', '{}', '{}', now() + '30 seconds', 1, %s)", [node, state],
    )  # fmt: skip
    return node


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

    async def sweep_and_ask() -> float:
        again_in = await sweep()
        if not jobs:
            jobs.extend(insert_running(conn))
            rescuer.sweep_soon()
        return again_in

    monkeypatch.setattr(rescuer, "_sweep", sweep_and_ask)
    await rescuer.tick()
    assert conn.execute(STATUS, jobs).fetchone() == ("running",)
    await rescuer.tick()
    assert conn.execute(STATUS, jobs).fetchone() == ("not_started",)


def test_a_rescue_whose_snapshot_is_old_takes_no_job_from_the_node_that_has_it_now(
    conn: psycopg.Connection, database_url: str
) -> None:
    """A backend stops between its snapshot and its locks; meanwhile another has rescued the job, and a third has claimed it."""
    migrate_jobs(conn, [RescuedJob])
    dead, alive = insert_node(conn, "lost"), insert_node(conn, "live")
    job = insert_running(conn, dead)
    rescue = statements.for_table("rescue_jobs", ("public", "rescued_jobs"))
    parameters = {
        "id": job,
        "dead": [dead],
        "crashed": [],
        "how": "now",
        "reason": None,
        "max_attempts": 10,
        "max_crashes": 3,
    }
    gated = GatedSession(database_url, ["rescued_jobs"])
    try:
        late = gated.start(rescue, parameters)
        conn.execute("UPDATE rescued_jobs SET status = 'retry', locked_at = NULL, run_at = now() WHERE id = %s", job)
        conn.execute(
            "UPDATE rescued_jobs SET status = 'running', locked_at = now(), locked_by = %s WHERE id = %s", [alive, *job]
        )
        assert late.end() == []
    finally:
        gated.close()
    assert conn.execute("SELECT status::text, locked_by FROM rescued_jobs").fetchall() == [("running", alive)]


async def test_a_job_that_may_not_wait_again_frees_its_place_all_the_same(
    conn: psycopg.Connection, rescuer: Rescuer
) -> None:
    """A duplicate waits that the orphan keeps from being claimed: neither must wait for the other for ever."""
    conn.execute("ALTER TABLE rescued_jobs ADD COLUMN key integer DEFAULT 1")
    conn.execute("CREATE UNIQUE INDEX ON rescued_jobs (key) WHERE status = 'not_started'")
    orphan = insert_running(conn)
    conn.execute("INSERT INTO rescued_jobs DEFAULT VALUES")
    await rescuer.tick()
    assert conn.execute(STATUS, orphan).fetchone() == ("retry",)


async def test_a_job_that_may_not_wait_in_any_way_fails_with_the_reason(
    conn: psycopg.Connection, rescuer: Rescuer
) -> None:
    conn.execute("ALTER TABLE rescued_jobs ADD COLUMN key integer DEFAULT 1")
    conn.execute("CREATE UNIQUE INDEX ON rescued_jobs (key) WHERE status IN ('not_started', 'scheduled', 'retry')")
    orphan = insert_running(conn)
    conn.execute("INSERT INTO rescued_jobs DEFAULT VALUES")
    await rescuer.tick()
    assert conn.execute(STATUS, orphan).fetchone() == ("failed",)
    (text,) = conn.execute("SELECT last_error FROM rescued_jobs WHERE id = %s", orphan).fetchone() or ("",)
    assert "refuses to let this job wait again: duplicate key" in text


async def test_one_row_that_refuses_leaves_no_other_behind(conn: psycopg.Connection, rescuer: Rescuer) -> None:
    jobs = [job_id for _ in range(20) for job_id in insert_running(conn)]
    conn.execute(f"ALTER TABLE rescued_jobs ADD CHECK (id <> {jobs[7]} OR status = 'running')".encode())
    await rescuer.tick()
    left = conn.execute("SELECT id FROM rescued_jobs WHERE status = 'running'").fetchall()
    assert left == [(jobs[7],)]
    assert [(item["reason"], item["rows"]) for item in rescuer._troubles.listed()] == [("rescue_refused", 1)]


async def test_a_locked_table_does_not_keep_the_others_waiting(
    conn: psycopg.Connection, rescuer: Rescuer, database_url: str
) -> None:
    migrate_jobs(conn, [OtherRescuedJob])  # comes first, by name
    orphan = insert_running(conn)
    rescuer._writing._setup = _short_waits
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE other_rescued_jobs IN ACCESS EXCLUSIVE MODE")
        await rescuer.tick()
        assert conn.execute(STATUS, orphan).fetchone() == ("not_started",)
        assert [item["reason"] for item in rescuer._troubles.listed()] == ["table_locked"]
    rescuer._tables["OtherRescuedJob"].hold._pause.until = 0.0
    rescuer.sweep_soon()
    await rescuer.tick()
    assert rescuer._troubles.listed() == []


async def _short_waits(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("SET lock_timeout = '100ms'")


@pytest.mark.parametrize(("state", "number", "crashes"), [("lost", 1, 1), ("lost", 2, 0), ("stopped", 1, 0)])
async def test_a_job_alone_on_a_node_that_was_lost_may_have_caused_it(
    conn: psycopg.Connection, rescuer: Rescuer, state: str, number: int, crashes: int
) -> None:
    node = insert_node(conn, state)
    for _ in range(number):
        insert_running(conn, node)
    await rescuer.tick()
    found = conn.execute("SELECT DISTINCT status::text, crashes_count FROM rescued_jobs").fetchall()
    assert found == [("not_started", crashes)]


CRASHES = "SELECT crashes_count FROM rescued_jobs WHERE id = ANY (%s) ORDER BY id"


async def test_a_job_that_was_left_behind_was_not_alone(
    conn: psycopg.Connection, rescuer: Rescuer, database_url: str
) -> None:
    """A later sweep, by whichever node, finds it alone; the first one has said how many there were."""
    node = insert_node(conn, "lost")
    jobs = insert_running(conn, node) + insert_running(conn, node)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM rescued_jobs WHERE id = %s FOR UPDATE", jobs[1:])
        await rescuer.tick()
        assert conn.execute(STATUS, jobs[1:]).fetchone() == ("running",)
    rescuer.sweep_soon()
    await rescuer.tick()
    assert conn.execute(STATUS, jobs[1:]).fetchone() == ("not_started",)
    assert conn.execute(CRASHES, [jobs]).fetchall() == [(0,), (0,)]


async def test_a_job_is_not_alone_as_far_as_anybody_knows_while_a_table_can_not_be_asked(
    conn: psycopg.Connection, rescuer: Rescuer, database_url: str
) -> None:
    migrate_jobs(conn, [OtherRescuedJob])
    jobs = insert_running(conn, insert_node(conn, "lost"))
    rescuer._writing._setup = _short_waits
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE other_rescued_jobs IN ACCESS EXCLUSIVE MODE")
        await rescuer.tick()
    assert conn.execute(STATUS, jobs).fetchone() == ("not_started",)
    assert conn.execute(CRASHES, [jobs]).fetchall() == [(0,)]


async def test_a_node_that_cannot_be_closed_yet_does_not_keep_others_waiting(
    conn: psycopg.Connection, rescuer: Rescuer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds its row, as a claim that is still open does."""
    held, free = insert_node(conn, "live"), insert_node(conn, "live")
    jobs = insert_running(conn, held) + insert_running(conn, free)
    monkeypatch.setattr(rescuer._observer, "lost", lambda sightings, now: [s.node for s in sightings])
    rescuer._writing._setup = _short_waits
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM cluster.nodes WHERE id = %s FOR KEY SHARE", [held])
        await rescuer.tick()
        assert conn.execute(STATUS, jobs[:1]).fetchone() == ("running",)
        assert conn.execute(STATUS, jobs[1:]).fetchone() == ("not_started",)
    await rescuer.tick()
    assert conn.execute(STATUS, jobs[:1]).fetchone() == ("not_started",)


async def test_a_job_that_keeps_taking_its_node_down_is_failed(conn: psycopg.Connection, rescuer: Rescuer) -> None:
    orphan = insert_running(conn, insert_node(conn, "lost"))
    conn.execute("UPDATE rescued_jobs SET crashes_count = 2")
    await rescuer.tick()
    assert conn.execute(STATUS, orphan).fetchone() == ("failed",)
    (text,) = conn.execute("SELECT last_error FROM rescued_jobs").fetchone() or ("",)
    assert "was lost with this job alone; 3 crashes, so it is not tried again" in text


def test_a_node_whose_session_fails_right_after_it_has_registered_claims_all_the_same(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(SOURCE, setup=HOLD_LOCK_FAILS_ONCE)
    wait_for(conn, "SELECT last_value > 1 FROM tries")
    conn.execute("INSERT INTO rescued_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM rescued_jobs")
