"""What a node tells of each minute, for the dashboard's charts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from cluster import Job, metrics, statements
from cluster.coordinator.code_hash import code_hash
from cluster.coordinator.lease import Lease
from cluster.coordinator.minutes import INTERVAL, Minutes
from cluster.coordinator.session import Session
from cluster.lease_clock import boottime
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import run

JOBS = """
from cluster import Fail, Job

class MinuteJob(Job):
    fails: bool = False
    max_attempts = 1
    async def perform(self):
        return Fail("on purpose") if self.fails else None

class IdleJob(Job):
    async def perform(self): ...
"""
ROWS = "SELECT job_table::text, sum(succeeded)::int, sum(failed)::int, sum(seconds) FROM cluster.minutes GROUP BY 1"


def test_a_node_that_stops_has_told_what_it_performed_and_nothing_of_what_it_did_not(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(JOBS, processes=1)
    run(conn, "INSERT INTO minute_jobs (fails) VALUES (false), (false), (false), (true)")
    wait_for(conn, "SELECT count(*) = 4 FROM minute_jobs WHERE finished_at IS NOT NULL")
    assert node.stop() == 0
    ((table, succeeded, failed, seconds),) = run(conn, ROWS)
    assert (table, succeeded, failed) == ("minute_jobs", 3, 1)
    assert 0 < seconds < 10
    ((waited, minutes, known),) = run(
        conn,
        "SELECT (SELECT sum(n) FROM cluster.minutes, unnest(waited) AS n)::int,"
        " bool_and(minute BETWEEN now() - interval '3 minutes' AND now()), bool_and(n.code ~ '^[0-9a-f]{12}$')"
        " FROM cluster.minutes AS m JOIN cluster.nodes AS n ON n.id = m.node",
    )
    assert (waited, minutes, known) == (4, True, True)


# --- one by one ---


class Told:
    """A teller, and attempts for it to tell of."""

    def __init__(self, session: Session) -> None:
        self.name = f"Told{uuid4().hex[:8]}Job"
        self.lease: Lease | None = Lease(uuid4(), boottime(), 60)
        self.minutes = Minutes(session, lambda: self.lease)

    def perform(self, succeeded: int = 0, failed: int = 0, wait: float = 0.02) -> None:
        for outcome, count in (("succeeded", succeeded), ("retry", failed)):
            metrics.run_seconds.observe((self.name, "default", outcome), [0.5] * count)
        metrics.wait_seconds.observe((self.name, "default"), [wait] * (succeeded + failed))


@pytest.fixture
async def told(database_url: str, conn: psycopg.Connection) -> AsyncIterator[Told]:
    async def nothing(_: psycopg.AsyncConnection[Any]) -> None: ...

    session = Session(lambda: database_url, "finish", setup=nothing)
    told = Told(session)
    run(conn, "SELECT cluster.create_job_table('told_jobs')")
    conn.execute("UPDATE cluster.job_types SET name = %s", [told.name])
    yield told
    await session.close()


async def test_what_is_told_within_one_minute_adds_up(told: Told, conn: psycopg.Connection) -> None:
    told.perform(succeeded=3, wait=0.02)
    assert await told.minutes.tick() == INTERVAL
    told.perform(succeeded=1, failed=2, wait=7)
    await told.minutes.tick()
    await told.minutes.tick()  # nothing new
    rows = run(conn, "SELECT sum(succeeded)::int, sum(failed)::int, sum(seconds) FROM cluster.minutes")
    assert rows == [(4, 2, 3.0)]
    conn.execute("UPDATE cluster.minutes SET minute = date_trunc('minute', now() - interval '30 seconds')")
    told.perform(succeeded=1, wait=0.02)
    await told.minutes.tick()
    buckets = run(conn, "SELECT waited FROM cluster.minutes")
    assert [sum(each) for each in zip(*(row[0] + [0] * 19 for row in buckets), strict=False)][
        : len(metrics.SECONDS)
    ] == [4 if bound == 0.025 else 3 if bound == 10 else 0 for bound in metrics.SECONDS]


async def test_what_could_not_be_told_is_told_later_and_without_a_lease_nothing_is(
    told: Told, conn: psycopg.Connection
) -> None:
    run(conn, "ALTER TABLE cluster.minutes RENAME TO hidden")
    told.perform(succeeded=2)
    with pytest.raises(psycopg.Error):
        await told.minutes.tick()
    run(conn, "ALTER TABLE cluster.hidden RENAME TO minutes")
    lease, told.lease = told.lease, None
    await told.minutes.tick()
    assert run(conn, ROWS) == []
    told.lease = lease
    await told.minutes.tick()
    assert run(conn, ROWS) == [("told_jobs", 2, 0, 1.0)]


async def test_minutes_are_kept_for_a_day(told: Told, conn: psycopg.Connection) -> None:
    conn.execute(
        "INSERT INTO cluster.minutes SELECT date_trunc('minute', now()) - age, 'told_jobs', %s, 1, 0, 1, '{1}'"
        " FROM unnest(ARRAY['23 hours', '25 hours', '3 days']::interval[]) AS age",
        [UUID(int=1)],
    )
    told.perform(succeeded=1)
    await told.minutes.tick()
    assert run(conn, "SELECT count(*) FROM cluster.minutes") == [(2,)]
    explained = conn.execute(b"EXPLAIN " + statements.statement("prune_minutes")._obj.encode()).fetchall()
    assert explained


def test_other_code_has_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "hashed_code_of_a_test.py"
    file.write_text("from cluster import Job\n\nclass HashedJob(Job):\n    async def perform(self): ...\n")
    import importlib

    module = importlib.import_module("hashed_code_of_a_test")
    classes: list[type[Job]] = [module.HashedJob]
    before = code_hash(classes, tmp_path)
    assert code_hash(classes, tmp_path) == before == code_hash(classes, Path("/nowhere"))
    file.write_text(file.read_text() + "# changed\n")
    assert code_hash(classes, tmp_path) != before
