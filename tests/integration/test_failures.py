"""Every failed attempt leaves one row in cluster.failures, written with its outcome; nothing else does, and nothing pays for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import psycopg
import pytest

from cluster import Job
from cluster.coordinator.failures import PAUSE, REST, WINDOW, FailureSweeper
from cluster.coordinator.lease import Lease
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles
from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import insert, others_go_on, refuse, run, wait_status

SOURCE = """
import asyncio, os, time
from datetime import timedelta
from cluster import Cancel, Fail, Job, Snooze
from cluster.backoff import ConstantBackoff

class OddJob(Job):
    label: str = ""
    max_attempts = 2
    max_crashes = 1
    max_concurrency = None
    timeout = timedelta(seconds=0.3)
    backoff = ConstantBackoff(timedelta(0))

    async def perform(self):
        match self.label:
            case "fail": return Fail("closed until 9")
            case "cancel": return Cancel("not needed")
            case "snooze": return Snooze(timedelta(hours=1))
            case "slow": await asyncio.sleep(60)
            case "crash": os._exit(1)
            case "wait": await asyncio.sleep(0.2)
        if self.label.startswith("raise"):
            raise LookupError(f"no customer {self.id}")

class GoodJob(Job):
    label: str = ""
    max_concurrency = None
    async def perform(self): ...
"""
QUICK = {"heartbeat_interval": "500ms", "lease": "3s", "poll_interval": "500ms"}
ROWS = """
SELECT job_id, attempt, outcome, error FROM cluster.failures WHERE job_table = 'odd_jobs'::regclass ORDER BY job_id, at
"""


def test_each_failed_attempt_has_a_row_with_its_own_error(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, **QUICK)
    raises, fails, slow = insert(conn, "odd_jobs", "raise", "fail", "slow")
    wait_status(conn, "odd_jobs", "failed", [raises, fails])
    wait_status(conn, "odd_jobs", "timed_out", [slow])
    (crash,) = insert(conn, "odd_jobs", "crash")
    wait_status(conn, "odd_jobs", "failed", [crash])
    rows = run(conn, ROWS)
    assert [row[:3] for row in rows] == [
        (raises, 1, "retry"), (raises, 2, "failed"), (fails, 1, "failed"), (slow, 1, "timed_out"), (slow, 2, "timed_out"),
        (crash, 1, "crashed"),
    ]  # fmt: skip
    errors = {job_id: error for job_id, _, _, error in rows}
    assert errors[raises].endswith(f"LookupError: no customer {raises}")
    assert errors == dict(run(conn, "SELECT id, last_error FROM odd_jobs"))
    kinds = dict(run(conn, "SELECT job_id, array_agg(DISTINCT fingerprint) FROM cluster.failures GROUP BY 1"))
    assert (kinds[slow], kinds[crash]) == (["timeout"], ["crash"])
    assert len(kinds[raises]) == len(kinds[fails]) == 1
    known = "SELECT bool_and(f.node = n.id AND f.at <= now()) FROM cluster.failures AS f, cluster.nodes AS n"
    assert run(conn, known) == [(True,)]
    run(conn, "SELECT cluster.retry('odd_jobs', %s)", fails)  # it keeps its history
    wait_for(conn, "SELECT count(*) = 2 FROM cluster.failures WHERE job_id = %s AND attempt = 1", [fails])
    run(conn, "TRUNCATE odd_jobs, cluster.failures")
    ids = insert(conn, "odd_jobs", *["raise", ""] * 500)  # these are written together
    wait_for(conn, "SELECT count(*) = 1000 FROM odd_jobs WHERE finished_at IS NOT NULL")
    found = run(conn, "SELECT job_id, array_agg(attempt ORDER BY at) FROM cluster.failures GROUP BY 1 ORDER BY 1")
    assert found == [(job_id, [1, 2]) for job_id in ids[::2]]
    assert run(conn, "SELECT array_agg(DISTINCT fingerprint) FROM cluster.failures") == [(kinds[raises],)]
    assert node.stop() == 0


def test_what_is_no_failure_leaves_no_row(conn: psycopg.Connection, run_node: RunNode) -> None:
    """Not a drain of successes, nor what is snoozed, cancelled from inside or outside, or released by a stop."""
    node = run_node(SOURCE, processes=1, shutdown_timeout="5s", **QUICK)
    many = insert(conn, "good_jobs", *["fine"] * 3000)
    ended = insert(conn, "odd_jobs", "", "cancel")
    (snoozed,) = insert(conn, "odd_jobs", "snooze")
    (late,) = insert(conn, "odd_jobs", "", run_at="9000-01-01")
    run(conn, "SELECT cluster.cancel('odd_jobs', %s)", late)
    wait_status(conn, "good_jobs", "succeeded", many)
    wait_status(conn, "odd_jobs", "scheduled", [snoozed])
    wait_for(conn, "SELECT count(*) = 2 FROM odd_jobs WHERE id = ANY (%s) AND finished_at IS NOT NULL", [ended])
    insert(conn, "odd_jobs", *["wait"] * 100)
    wait_for(conn, "SELECT count(*) > 0 FROM odd_jobs WHERE status = 'running'")
    assert node.stop() == 0
    assert run(conn, "SELECT * FROM cluster.failures") == []


# --- what others do to a job ---


def test_jobs_of_a_lost_node_failed_there(conn: psycopg.Connection, run_node: RunNode) -> None:
    lost, cancelled = uuid4(), uuid4()
    setup = f"""
        ALTER TABLE odd_jobs DISABLE TRIGGER USER;
        INSERT INTO odd_jobs (label, status, locked_at, locked_by, attempts_count, cancel_requested_at) VALUES
            ('', 'running', now(), '{lost}', 1, NULL), ('', 'running', now(), '{lost}', 2, NULL),
            ('', 'running', now(), '{cancelled}', 1, now());
        ALTER TABLE odd_jobs ENABLE TRIGGER USER;
    """
    run_node(SOURCE, setup=setup, **QUICK)
    wait_for(conn, "SELECT count(*) = 3 FROM odd_jobs WHERE finished_at IS NOT NULL")
    rows = run(
        conn, "SELECT job_id, attempt, outcome, fingerprint, node, error ~ 'was lost' FROM cluster.failures ORDER BY 1"
    )
    assert rows == [(1, 1, "lost", "lost_node", lost, True), (2, 2, "lost", "lost_node", lost, True)]


def test_a_row_that_is_refused_or_too_large_failed_without_having_begun(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(SOURCE, setup="INSERT INTO cluster.queues VALUES ('later', now())", **QUICK)
    refuse(conn, "odd_jobs", "NEW.status = 'running' AND NEW.label = 'bad'")
    ((large,),) = run(conn, "INSERT INTO odd_jobs (label) VALUES (repeat('0123456789', 14000000)) RETURNING id")
    (bad,) = insert(conn, "odd_jobs", "bad")
    wait_status(conn, "odd_jobs", "failed", [bad, large])
    rows = run(conn, "SELECT job_id, attempt, outcome, node, error FROM cluster.failures ORDER BY job_id")
    errors = dict(run(conn, "SELECT id, last_error FROM odd_jobs WHERE status = 'failed'"))
    assert rows == [(large, 1, "too_large", None, errors[large]), (bad, 1, "refused", None, errors[bad])]
    assert "too_large" in run(conn, "SELECT fingerprint FROM cluster.failures ORDER BY job_id")[0]


# --- what is wrong with the table costs no outcome ---

OBSTACLES = {
    "no privilege": ("REVOKE ALL ON cluster.failures FROM keeper", "GRANT ALL ON cluster.failures TO keeper"),
    "a check": (
        "ALTER TABLE cluster.failures ADD CONSTRAINT no CHECK (attempt < 0)",
        "ALTER TABLE cluster.failures DROP CONSTRAINT no",
    ),
    "a lock": ("BEGIN; LOCK TABLE cluster.failures", "COMMIT"),
    "no table": ("ALTER TABLE cluster.failures RENAME TO gone", "ALTER TABLE cluster.gone RENAME TO failures"),
}


def test_an_outcome_is_written_whatever_is_wrong_with_the_table_of_failures(
    conn: psycopg.Connection, database_url: str, run_node: RunNode
) -> None:
    setup = """
        DO $$BEGIN CREATE ROLE keeper LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END$$;
        GRANT ALL ON ALL TABLES IN SCHEMA cluster TO keeper; GRANT ALL ON odd_jobs, good_jobs TO keeper;
    """
    node = run_node(SOURCE, setup=setup, role="keeper", **QUICK)
    with psycopg.connect(database_url, autocommit=True) as other:
        for begin, end in OBSTACLES.values():
            run(other, begin)
            ids = insert(conn, "odd_jobs", *["raise"] * 20, *["fail"] * 5)
            wait_status(conn, "odd_jobs", "failed", ids, timeout=10)
            others_go_on(conn)
            run(other, end)
            assert run(conn, "SELECT * FROM cluster.failures") == []
    assert run(conn, "SELECT count(*) FROM odd_jobs WHERE last_error IS NULL") == [(0,)]
    assert not node.log("trouble_began")
    ids = insert(conn, "odd_jobs", "fail")
    wait_for(conn, "SELECT count(*) = 1 FROM cluster.failures")


# --- sweeping ---


class FailingJob(Job):
    async def perform(self) -> None: ...


@pytest.fixture
async def sweeper(conn: psycopg.Connection, database_url: str) -> AsyncIterator[FailureSweeper]:
    """Of the only node."""
    migrate_jobs(conn, [FailingJob])
    lease = Lease(uuid4(), 60.0, 0.0)
    run(conn, "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)"
        " VALUES (%s, '', 1, '', '{}', '{}', now() + '1 hour', 1)", lease.node)  # fmt: skip
    session = Session(lambda: database_url, "finish")
    yield FailureSweeper(session, Troubles(), lambda: lease)
    await session.close()


FAIL = """
INSERT INTO cluster.failures SELECT 'failing_jobs'::regclass, id, n, now() - n * '1 us'::interval, NULL, 'retry', 'timeout'
FROM failing_jobs, generate_series(1, 2) AS n
"""


async def test_failures_go_when_their_job_is_gone(conn: psycopg.Connection, sweeper: FailureSweeper) -> None:
    jobs = WINDOW + 10
    run(
        conn, "INSERT INTO failing_jobs (created_at) SELECT now() - interval '1 hour' FROM generate_series(1, %s)", jobs
    )
    run(conn, FAIL)
    run(conn, "DELETE FROM failing_jobs WHERE id %% 2 = 0 AND id > %s", 0)
    delays = [await sweeper.tick() for _ in range(3)]
    assert delays == [PAUSE, PAUSE, REST]
    left = run(conn, "SELECT job_id, count(*) FROM cluster.failures GROUP BY 1 ORDER BY 1")
    assert left == [(job_id, 2) for job_id in range(1, jobs + 1, 2)]
    assert await sweeper.tick() == PAUSE, "the next walk begins from the start"


async def test_failures_of_the_job_that_had_the_id_before_go_too(
    conn: psycopg.Connection, sweeper: FailureSweeper
) -> None:
    run(conn, "INSERT INTO failing_jobs (created_at) VALUES (now() - interval '1 hour')")
    run(conn, FAIL)
    run(conn, "TRUNCATE failing_jobs RESTART IDENTITY; INSERT INTO failing_jobs DEFAULT VALUES")
    assert await sweeper.tick() == REST
    assert run(conn, "SELECT * FROM cluster.failures") == []


async def test_failures_of_a_table_that_was_dropped_go(conn: psycopg.Connection, sweeper: FailureSweeper) -> None:
    run(conn, "INSERT INTO failing_jobs SELECT FROM generate_series(1, %s)", WINDOW)
    run(conn, FAIL)
    run(conn, "DROP TABLE failing_jobs; CREATE TABLE failing_jobs AS SELECT 1::bigint AS id")
    run(conn, "INSERT INTO cluster.failures SELECT 'failing_jobs'::regclass, 1, 1, now(), NULL, 'retry', 'timeout'")
    while await sweeper.tick() == PAUSE:
        pass
    assert run(conn, "SELECT job_table::text FROM cluster.failures") == [("failing_jobs",)], (
        "it is no job table: left alone"
    )


async def test_another_node_than_the_oldest_sweeps_nothing(conn: psycopg.Connection, sweeper: FailureSweeper) -> None:
    run(conn, "INSERT INTO failing_jobs DEFAULT VALUES")
    run(conn, FAIL)
    run(conn, "DELETE FROM failing_jobs; UPDATE cluster.nodes SET started_at = now() + interval '1 minute'")
    run(conn, "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)"
        " VALUES (gen_random_uuid(), '', 1, '', '{}', '{}', now() + '1 hour', 1)")  # fmt: skip
    assert await sweeper.tick() == REST
    assert run(conn, "SELECT count(*) FROM cluster.failures") == [(2,)]
