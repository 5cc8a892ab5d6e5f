"""What is wrong with one thing costs only that thing: a row, a table, a role's privilege, a notification."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

from cluster import Job
from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until
from tests.support.rows import insert, others_go_on, peak_megabytes, run, wait_status, wait_trouble

JOBS = """
import asyncio
from datetime import datetime, timedelta
from typing import Annotated
from cluster import ConstantBackoff, Fail, Job, Snooze

class OddJob(Job):
    label: str = ""
    key: int | None = None
    at: datetime | None = None
    max_attempts = {attempts}
    max_concurrency = {limit}
    backoff = ConstantBackoff(timedelta(days=3_000_000))

    async def perform(self):
        if self.label == "snooze":
            return Snooze(timedelta.max)
        if self.label == "fail":
            raise ValueError("no")
        if self.label == "long text":
            import random, string
            raise ValueError("".join(random.choices(string.ascii_letters + string.digits, k=9000)))
        if self.label.startswith("slow"):
            await asyncio.sleep(float(self.label.split()[1]))

class GoodJob(Job):
    async def perform(self): ...
"""


def jobs(limit: int | None = None, attempts: int = 3) -> str:
    return JOBS.format(limit=limit, attempts=attempts)


# --- values ---


class OddDateJob(Job):
    async def perform(self) -> None: ...


@pytest.mark.parametrize(
    "run_at", ["20000-01-01", "0044-03-15 BC", "infinity", "-infinity", "9999-12-31 12:00+00", "294000-01-01"]
)
def test_a_date_that_python_or_the_protocol_cannot_carry_is_refused_at_the_insert(
    conn: psycopg.Connection, run_at: str
) -> None:
    migrate_jobs(conn, [OddDateJob])
    run(conn, "DROP ROLE IF EXISTS only_inserts; CREATE ROLE only_inserts")
    run(conn, "GRANT INSERT ON odd_date_jobs TO only_inserts")
    run(conn, "SET ROLE only_inserts")
    with pytest.raises(errors.CheckViolation, match="cluster_run_at_range"):
        run(conn, "INSERT INTO odd_date_jobs (run_at) VALUES (%s::timestamptz)", run_at)
    run(conn, "RESET ROLE")
    run(conn, "INSERT INTO odd_date_jobs DEFAULT VALUES")
    with pytest.raises(errors.CheckViolation, match="cluster_run_at_range"):
        run(conn, "UPDATE odd_date_jobs SET run_at = %s::timestamptz", run_at)
    run(conn, "DROP OWNED BY only_inserts; DROP ROLE only_inserts")


def test_a_queue_has_at_most_128_characters(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [OddDateJob])
    run(conn, "INSERT INTO odd_date_jobs (queue) VALUES (repeat('ü', 128))")
    with pytest.raises(errors.CheckViolation, match="cluster_queue_named"):
        run(conn, "INSERT INTO odd_date_jobs (queue) VALUES (repeat('ü', 129))")


@pytest.mark.parametrize("delay", [timedelta(days=3_000_000), timedelta.max])
def test_a_delay_of_ages_is_cut_to_a_hundred_years(conn: psycopg.Connection, delay: timedelta) -> None:
    migrate_jobs(conn, [OddDateJob])
    OddDateJob().perform_later(conn, delay=delay)
    OddDateJob.perform_many(conn, [OddDateJob()], delay=delay)
    far = "SELECT bool_and(status = 'scheduled' AND run_at BETWEEN now() + '99 years' AND now() + '101 years') FROM odd_date_jobs"
    assert run(conn, far) == [(True,)]


def test_snoozes_backoffs_and_columns_of_ages_harm_nobody(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(jobs())
    (snoozed,), (failed,) = insert(conn, "odd_jobs", "snooze"), insert(conn, "odd_jobs", "fail")
    (odd,) = insert(conn, "odd_jobs", "", at=None)
    run(conn, "UPDATE odd_jobs SET at = '20000-01-01' WHERE id = %s", odd)
    ((ancient,),) = run(conn, "INSERT INTO odd_jobs (at) VALUES ('0044-03-15 BC') RETURNING id")
    wait_status(conn, "odd_jobs", "scheduled", [snoozed])
    wait_status(conn, "odd_jobs", "retry", [failed])
    wait_status(conn, "odd_jobs", "failed", [ancient])
    others_go_on(conn)
    assert node.stop() == 0


# --- rows that refuse ---

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.label LIKE 'bad%%' AND NEW.status = '{status}' AND OLD.status <> NEW.status THEN
        RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON odd_jobs FOR EACH ROW EXECUTE FUNCTION refuse()
"""
CODES = [
    "P0001",
    "53000",
    "53100",
    "57014",
    "55000",
    "08006",
    "57P01",
    "40001",
    "25006",
    "0A000",
    "42P01",
    "42501",
    "XX000",
    "54000",
]


@pytest.mark.fault
@pytest.mark.parametrize("status", ["running", "succeeded", "not_started"])
def test_whatever_one_row_raises_at_any_statement_is_its_own_matter(
    conn: psycopg.Connection, run_node: RunNode, status: str
) -> None:
    """The same trouble in turn with every kind of code, each of which psycopg has a class for."""
    node = run_node(jobs(), heartbeat_interval="1s", lease="5s")
    for code in CODES:
        run(conn, REFUSE.format(status=status, code=code).replace("%%", "%"))
        later = {"run_at": "now() + interval '100 milliseconds'"} if status == "not_started" else {}
        labels = ["", "bad", *[""] * 10]
        if later:
            ids = [i for (i,) in run(conn, "INSERT INTO odd_jobs (label, run_at) SELECT label, now() + interval '100 milliseconds' "
                                           "FROM unnest(%s::text[]) AS label RETURNING id", labels)]  # fmt: skip
        else:
            ids = insert(conn, "odd_jobs", *labels)
        bad = ids.pop(1)
        wait_status(conn, "odd_jobs", "succeeded", ids, timeout=10)
        others_go_on(conn)
        assert run(conn, "SELECT status <> 'succeeded' FROM odd_jobs WHERE id = %s", bad) == [(True,)]
        run(conn, "DROP FUNCTION refuse CASCADE")
        wait_for(conn, "SELECT status IN ('succeeded', 'failed') FROM odd_jobs WHERE id = %s", [bad], timeout=40)
    assert not node.log("database_away"), "the sessions were never in doubt"
    wait_until(
        lambda: not any("OddJob" in name for name in node.metrics() if name.startswith("cluster_trouble")),
        "all is over",
        60,
    )
    assert node.stop() == 0


def test_an_error_text_that_an_index_does_not_take_is_shortened(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(jobs(limit=16, attempts=1), setup="CREATE INDEX ON odd_jobs (last_error)")
    ids = insert(conn, "odd_jobs", *["long text"] * 20, *[""] * 20)
    wait_for(conn, "SELECT bool_and(status IN ('failed', 'succeeded')) FROM odd_jobs")
    assert run(conn, "SELECT count(*) FROM odd_jobs WHERE status = 'failed' AND last_error LIKE '%%Traceback%%'") == [
        (20,)
    ]
    assert not node.log("database_away")
    assert len(ids) == 40


# --- privileges ---


@pytest.fixture
def node_role(conn: psycopg.Connection) -> Any:
    """A role that may do what a node needs, and no more."""
    name = f"node_{int(time.time() * 1e6)}"
    run(conn, f"CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA cluster, public TO {name};"
              f"GRANT ALL ON ALL TABLES IN SCHEMA cluster TO {name}")  # fmt: skip
    yield name
    run(conn, f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize("privilege", ["SELECT", "UPDATE"])
def test_a_privilege_that_is_revoked_leaves_out_its_type_until_it_is_granted_again(
    conn: psycopg.Connection, run_node: RunNode, node_role: str, privilege: str
) -> None:
    grant = f"GRANT SELECT, UPDATE ON odd_jobs, good_jobs TO {node_role}"
    node = run_node(jobs(), setup=grant, role=node_role)
    (before,) = insert(conn, "odd_jobs", "")
    wait_status(conn, "odd_jobs", "succeeded", [before])
    run(conn, f"REVOKE {privilege} ON odd_jobs FROM {node_role}")
    (later,) = insert(conn, "odd_jobs", "")
    wait_trouble(node, "no_privilege")
    others_go_on(conn)
    told = 'SELECT trouble @> \'[{"job_type": "OddJob", "reason": "no_privilege"}]\' FROM cluster.nodes'
    wait_for(conn, told)
    run(conn, f"GRANT {privilege} ON odd_jobs TO {node_role}")
    wait_status(conn, "odd_jobs", "succeeded", [later], timeout=40)
    wait_trouble(node, "no_privilege", there=False, timeout=40)
    assert node.stop() == 0


# --- notifications, from anybody ---

PAYLOADS = (
    "9" * 5000, "²³", "٣ ٤", "-1", "1 2 3", "9" * 19 + " 1", "99999999999999999999 1", "\x01", "+" * 100, "1.5", " ", "0x10", "🐘",
)  # fmt: skip


def test_no_notification_harms_a_node_or_a_job(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(jobs())
    (job_id,) = insert(conn, "odd_jobs", "slow 2")
    wait_status(conn, "odd_jobs", "running", [job_id])
    ((oid,),) = run(conn, "SELECT 'odd_jobs'::regclass::oid::bigint")
    for channel in ("cluster_doorbell", "cluster_cancel"):
        for payload in [*PAYLOADS, "", "+", f"{oid} {job_id}", f"{oid}"] * 5:
            run(conn, "SELECT pg_notify(%s, %s)", channel, payload)
    others_go_on(conn)
    wait_status(conn, "odd_jobs", "succeeded", [job_id])
    assert node.stop() == 0


def test_a_cancellation_is_what_the_row_says(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(jobs())
    (job_id,) = insert(conn, "odd_jobs", "slow 60")
    wait_status(conn, "odd_jobs", "running", [job_id])
    run(conn, "SELECT cluster.cancel('odd_jobs', %s)", job_id)
    wait_status(conn, "odd_jobs", "cancelled", [job_id], timeout=3)


# --- rows that are too large ---


def test_a_row_that_is_too_large_for_a_node_is_failed_before_it_is_fetched(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(jobs())
    ((large,),) = run(conn, "INSERT INTO odd_jobs (label) VALUES (repeat('0123456789', 24000000)) RETURNING id")
    rest = insert(conn, "odd_jobs", *[""] * 5)
    wait_status(conn, "odd_jobs", "succeeded", [*rest])
    wait_status(conn, "odd_jobs", "failed", [large])
    ((text,),) = run(conn, "SELECT last_error FROM odd_jobs WHERE id = %s", large)
    assert text.startswith("this row has 228 MB, and a node takes 128 MB at most")
    assert peak_megabytes(node.pid) < 250


# --- many queues ---


def test_a_thousand_queues_are_one_backlog_in_order(conn: psycopg.Connection, run_node: RunNode) -> None:
    setup = """
        INSERT INTO odd_jobs (queue, priority) SELECT 'tenant ' || n, 1 + n * 37 % 100 FROM generate_series(1, 3000) n;
        CREATE TABLE begun (n bigserial, id bigint);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF NEW.status = 'succeeded' THEN INSERT INTO begun (id) VALUES (NEW.id); END IF; RETURN NULL; END$$;
        CREATE TRIGGER note AFTER UPDATE ON odd_jobs FOR EACH ROW EXECUTE FUNCTION note()
    """
    node = run_node(jobs(limit=1), setup=setup, processes=1, concurrency=1)
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM odd_jobs", timeout=40)
    out_of_order = """SELECT count(*) FROM (SELECT priority < lag(priority) OVER (ORDER BY n) AS wrong
                      FROM begun JOIN odd_jobs USING (id)) AS pairs WHERE wrong"""
    assert run(conn, out_of_order) == [(0,)]
    names = [name for name in node.metrics() if name.startswith("cluster_jobs_claimed_total{")]
    assert len(names) == 200  # "default" has a place, and nothing ran there
    assert any('queue="(other)"' in name for name in names)


def test_a_node_with_its_own_queues_starts_its_jobs_at_once_among_thousands(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(
        jobs(),
        setup="INSERT INTO odd_jobs (queue) SELECT 'tenant ' || n FROM generate_series(1, 5000) n",
        queues="mine,default",
    )
    for queue in ("mine", "default"):
        (job_id,) = insert(conn, "odd_jobs", "", queue=queue)
        wait_status(conn, "odd_jobs", "succeeded", [job_id], timeout=2)
    assert run(conn, "SELECT count(*) FROM odd_jobs WHERE status = 'not_started'") == [(5000,)]


def test_a_paused_queue_among_many_holds_up_nothing_else(conn: psycopg.Connection, run_node: RunNode) -> None:
    setup = """INSERT INTO cluster.queues VALUES ('paused', now());
               INSERT INTO odd_jobs (queue, priority) SELECT 'paused', 1 FROM generate_series(1, 20000);
               INSERT INTO odd_jobs (queue) SELECT 'tenant ' || n FROM generate_series(1, 500) n"""
    run_node(jobs(), setup=setup)
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM odd_jobs WHERE queue <> 'paused'")
    run(conn, "DELETE FROM cluster.queues")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM odd_jobs", timeout=40)
