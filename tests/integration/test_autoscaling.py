"""How many nodes the view cluster.autoscaling wants, who may read it, and what that costs the database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from cluster.migration import migrate_schema
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

SLOTS = 16
LONG, SHORT = 1000.0, 0.001
"""Seconds of a job: each needs a slot of its own, or thousands share one."""
ROOT = Path(__file__).parents[2]
GRANTS = re.findall(r"^GRANT .* TO autoscaler;$", (ROOT / "docs" / "sql.md").read_text(encoding="utf-8"), re.MULTILINE)
(QUERY,) = re.findall(
    r"^ +query: (.*)$", (ROOT / "deploy/k8s/components/keda/autoscaler.yaml").read_text(encoding="utf-8"), re.MULTILINE
)


NEW = pytest.approx(timedelta(0), abs=timedelta(seconds=20))


class Wanted(NamedTuple):
    replicas: int
    waiting: int
    running: int
    due_schedules: int
    oldest_age: Any
    """A timedelta, None, or in comparisons about so much."""


class Cluster:
    """A database with nodes that are rows only, and job tables. The role `postgres` may do anything."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn

    def run(self, statement: str, *parameters: object) -> None:
        self.conn.execute(statement.encode(), parameters or None)

    def allow(self, role: str) -> None:
        """As documented."""
        assert len(GRANTS) == 2
        for grant in GRANTS:
            self.run(grant.replace("autoscaler;", f"{role};"))

    def table(self, name: str = "mail_jobs", limit: int | None = None) -> None:
        self.run(f"SELECT cluster.create_job_table('{name}')")
        self.run("UPDATE cluster.job_types SET max_concurrency = %s WHERE name = %s", limit, name)

    def waits(self, jobs: int, queue: str = "default", table: str = "mail_jobs") -> None:
        self.run(f"INSERT INTO {table} (queue) SELECT %s FROM generate_series(1, %s)", queue, jobs)

    def runs(self, jobs: int, node: UUID, queue: str = "default", table: str = "mail_jobs") -> None:
        self.as_replica(
            f"INSERT INTO {table} (queue, status, locked_at, locked_by) "
            f"SELECT '{queue}', 'running', now(), '{node}' FROM generate_series(1, {jobs})"
        )

    def as_replica(self, statement: str) -> None:
        """A job table takes rows with a history from a replica only."""
        self.run("SET session_replication_role = replica")
        self.run(statement)
        self.run("SET session_replication_role = origin")

    def node(
        self, *, seconds: float | None = None, width: int = 1, slots: int = SLOTS, queues: str = "*", state: str = "live",
        running: int = 0, jobs: str = "mail_jobs",
    ) -> UUID:  # fmt: skip
        """seconds: that its jobs of mail_jobs take, None: none has ended yet."""
        node = uuid4()
        attempts = 0 if seconds is None else 100
        work = {"job_type": "mail_jobs", "slots": width, "seconds": seconds or 0, "attempts": attempts}
        self.run(
            "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, state, running, work) "
            "VALUES (%s, 'h', 1, '0', %s, %s, now() + interval '1 minute', %s, %s, %s, %s)",
            node, [queues], jobs.split(","), slots, state, running, json.dumps([work]),
        )  # fmt: skip
        return node

    def wanted(self, queue: str = "*") -> Wanted | None:
        """None: the queue has no row."""
        row = self.conn.execute("SELECT * FROM cluster.autoscaling WHERE queue = %s", [queue]).fetchone()
        return None if row is None else Wanted(*row[1:])

    def replicas(self, queue: str = "*") -> int:
        wanted = self.wanted(queue)
        assert wanted is not None
        return wanted.replicas


@pytest.fixture
def cluster(conn: psycopg.Connection) -> Cluster:
    migrate_schema(conn)
    return Cluster(conn)


def test_nothing_to_do_wants_nothing(cluster: Cluster) -> None:
    cluster.table()
    assert cluster.wanted() == Wanted(0, 0, 0, 0, None)
    assert cluster.wanted("default") is None
    cluster.node()
    assert cluster.replicas() == 0


def test_a_backlog_wants_so_many_slots_that_it_starts_in_time(cluster: Cluster) -> None:
    cluster.table()
    cluster.node(seconds=10)
    cluster.waits(480)
    assert cluster.replicas() == 14
    assert 13 < 1.15 * 480 * 10 / (10 + 15) / SLOTS < 14
    cluster.run("SET cluster.start_within = '60 s'")
    assert cluster.replicas() == 9
    assert 8 < 1.15 * 480 * 10 / (10 + 30) / SLOTS < 9


def test_jobs_that_outlast_the_goal_want_a_slot_each(cluster: Cluster) -> None:
    cluster.table()
    node = cluster.node(seconds=100_000)
    cluster.waits(33)
    cluster.runs(16, node)
    assert cluster.wanted() == Wanted(4, 33, 16, 0, NEW)


def test_a_short_backlog_wants_one_node_and_a_job_of_unknown_duration_does_too(cluster: Cluster) -> None:
    cluster.table()
    cluster.waits(1)
    assert cluster.replicas() == 1
    cluster.node(seconds=SHORT)
    assert cluster.replicas() == 1
    cluster.waits(5000)
    assert cluster.replicas() == 1


def test_no_more_nodes_are_wanted_than_a_limit_can_use(cluster: Cluster) -> None:
    cluster.table(limit=4)
    cluster.node(seconds=LONG)
    cluster.waits(1000)
    assert cluster.replicas() == 1
    cluster.run("UPDATE cluster.job_types SET max_concurrency_override = 40")
    assert cluster.replicas() == 3
    cluster.run("UPDATE cluster.job_types SET max_concurrency_override = 0")
    assert cluster.replicas() == 0


def test_the_queues_of_a_type_share_its_limit(cluster: Cluster) -> None:
    cluster.table(limit=32)
    cluster.node(seconds=LONG)
    for queue in ("default", "bulk"):
        cluster.waits(500, queue)
    assert [cluster.replicas(queue) for queue in ("default", "bulk", "*")] == [1, 1, 2]


def test_a_limit_for_each_value_of_a_column_wants_no_more_than_its_values_can_use(cluster: Cluster) -> None:
    cluster.run("CREATE TABLE mail_jobs (customer bigint NOT NULL)")
    cluster.run("SELECT cluster.create_job_table('mail_jobs', 'customer')")
    cluster.run("UPDATE cluster.job_types SET max_concurrency = 4")
    cluster.node(seconds=LONG)
    cluster.run("INSERT INTO mail_jobs (customer) SELECT 1 + n % 5 FROM generate_series(1, 500) AS n")
    assert cluster.replicas() == 2
    cluster.run("UPDATE mail_jobs SET parked = true WHERE customer > 1")
    assert cluster.wanted() == Wanted(1, 500, 0, 0, NEW)


@pytest.mark.parametrize("status", ["scheduled", "retry"])
def test_rows_that_are_due_wake_a_cluster_without_nodes(cluster: Cluster, status: str) -> None:
    cluster.table()
    cluster.as_replica(f"INSERT INTO mail_jobs (status, run_at) VALUES ('{status}', now() + interval '10 minutes')")
    assert cluster.replicas() == 0
    cluster.as_replica(f"INSERT INTO mail_jobs (status, run_at) VALUES ('{status}', now() + interval '25 seconds')")
    assert cluster.wanted() == Wanted(1, 0, 0, 0, None), "it takes a while until a node is there"
    cluster.as_replica(f"INSERT INTO mail_jobs (status, run_at) VALUES ('{status}', now() - interval '1 hour')")
    assert cluster.wanted() == Wanted(1, 1, 0, 0, pytest.approx(timedelta(hours=1), abs=timedelta(seconds=20)))


def test_a_schedule_that_is_due_soon_wakes_a_cluster_without_nodes(cluster: Cluster) -> None:
    cluster.table()
    cluster.run("ALTER TABLE mail_jobs ALTER COLUMN queue SET DEFAULT 'mail'")
    add = "INSERT INTO cluster.schedules (name, job_table, every, job_values) VALUES (%s, 'mail_jobs', %s, %s)"
    cluster.run(add, "later", "1 hour", "{}")
    assert cluster.wanted() == Wanted(0, 0, 0, 0, None)
    cluster.run(add, "soon", "20 seconds", "{}")
    cluster.run(add, "urgent", "20 seconds", '{"queue": "urgent"}')
    assert cluster.wanted() == Wanted(1, 0, 0, 2, None)
    assert cluster.wanted("mail") == cluster.wanted("urgent") == Wanted(1, 0, 0, 1, None)
    assert cluster.wanted("default") is None
    cluster.run("UPDATE cluster.schedules SET active = false")
    assert cluster.wanted() == Wanted(0, 0, 0, 0, None)


def test_a_cron_that_no_node_has_seen_yet_wakes_a_cluster_without_nodes(cluster: Cluster) -> None:
    cluster.table()
    cluster.run("INSERT INTO cluster.schedules (name, job_table, cron) VALUES ('nightly', 'mail_jobs', '0 5 * * *')")
    assert cluster.wanted() == Wanted(1, 0, 0, 1, None)


def test_what_runs_keeps_its_nodes_even_if_it_is_paused(cluster: Cluster) -> None:
    cluster.table()
    for jobs in (16, 16, 8):
        cluster.runs(jobs, cluster.node(seconds=SHORT))
    assert cluster.replicas() == 3
    cluster.run("SELECT cluster.pause('mail_jobs'::regclass)")
    cluster.waits(1000)
    assert cluster.wanted() == Wanted(3, 0, 40, 0, None)


def test_what_a_node_has_claimed_ahead_wants_no_further_ones(cluster: Cluster) -> None:
    cluster.table()
    cluster.runs(1000, cluster.node(seconds=SHORT))
    assert cluster.replicas() == 1


@pytest.mark.parametrize("what", ["'mail_jobs'::regclass", "'default'", ""])
def test_what_is_paused_wants_nothing(cluster: Cluster, what: str) -> None:
    cluster.table()
    cluster.waits(1000)
    cluster.node(seconds=LONG)
    assert cluster.replicas() == 71
    cluster.run(f"SELECT cluster.pause({what})")
    assert cluster.wanted() == Wanted(0, 0, 0, 0, None)


def test_a_plain_job_wants_a_process_to_itself(cluster: Cluster) -> None:
    cluster.table()
    cluster.node(seconds=100_000, width=16, slots=32)
    cluster.waits(5)
    assert cluster.replicas() == 3


def test_a_cluster_without_nodes_is_sized_by_those_that_it_had(cluster: Cluster) -> None:
    cluster.table()
    cluster.node(seconds=100_000, slots=64, state="stopped")
    cluster.waits(100)
    assert cluster.replicas() == 2


def test_nodes_of_a_queue_are_sized_by_their_own_slots(cluster: Cluster) -> None:
    cluster.table()
    cluster.node(seconds=100_000, slots=16)
    cluster.node(seconds=100_000, slots=64, queues="mail")
    cluster.waits(100, "mail")
    assert (cluster.replicas("mail"), cluster.replicas("*")) == (2, 8)


def test_a_type_that_no_live_node_performs_wants_nothing(cluster: Cluster) -> None:
    cluster.table()
    cluster.waits(10)
    cluster.node(jobs="other_jobs", state="stopped")
    assert cluster.replicas() == 1, "the next ones may perform it"
    cluster.node(jobs="other_jobs")
    assert cluster.replicas() == 0


def test_a_table_that_is_locked_is_left_out_and_what_runs_there_keeps_its_nodes(
    cluster: Cluster, database_url: str
) -> None:
    cluster.table()
    cluster.table("other_jobs")
    cluster.waits(7, table="other_jobs")
    cluster.runs(16, cluster.node(running=16, jobs="mail_jobs,other_jobs"))
    cluster.runs(16, cluster.node(running=16))
    notices: list[str] = []
    cluster.conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE mail_jobs")
        assert cluster.wanted() == Wanted(2, 7, 0, 0, NEW)
    assert [notice for notice in notices if "mail_jobs is left out" in notice]
    wanted = cluster.wanted()
    assert wanted is not None
    assert (wanted.waiting, wanted.running) == (7, 32)


def test_more_waits_than_is_counted_when_the_planner_knows(cluster: Cluster) -> None:
    cluster.table()
    cluster.run("ALTER TABLE mail_jobs SET (autovacuum_enabled = false)")
    cluster.node(seconds=0.15)
    cluster.waits(30_000)
    before = cluster.wanted()
    assert before is not None
    assert before.waiting == 10_000
    cluster.run("ANALYZE mail_jobs")
    after = cluster.wanted()
    assert after is not None
    assert after.waiting == pytest.approx(30_000, rel=0.1)
    assert after.replicas == pytest.approx(3 * before.replicas, abs=3)


def test_it_costs_no_more_for_what_has_finished_or_waits_beyond_its_bound(cluster: Cluster) -> None:
    cluster.table()
    cluster.run("ALTER TABLE mail_jobs SET (autovacuum_enabled = false)")
    cluster.waits(12_000)
    cluster.run("VACUUM ANALYZE mail_jobs")
    before = _pages_read(cluster)
    cluster.waits(20_000)
    cluster.as_replica(
        "INSERT INTO mail_jobs (status, finished_at) SELECT 'succeeded', now() FROM generate_series(1, 50000)"
    )
    cluster.run("VACUUM ANALYZE mail_jobs")
    assert _pages_read(cluster) < 1.3 * before


def _pages_read(cluster: Cluster) -> int:
    """By the view, in a session that has planned its queries before."""
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM cluster.autoscaling"
    cluster.run(explain)
    row = cluster.conn.execute(explain.encode()).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


# --- who may read it ---


@pytest.fixture
def role(conn: psycopg.Connection) -> Iterator[str]:
    name = f"autoscaler_{uuid4().hex[:8]}"
    conn.execute(f"CREATE ROLE {name} LOGIN".encode())
    yield name
    conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


@pytest.fixture
def as_role(database_url: str, role: str) -> Callable[[], psycopg.Connection[Any]]:
    return lambda: psycopg.connect(make_conninfo(database_url, user=role), autocommit=True)


def test_a_role_with_the_documented_grants_reads_the_numbers_and_nothing_else(
    cluster: Cluster, role: str, as_role: Callable[[], psycopg.Connection[Any]]
) -> None:
    cluster.table()
    cluster.waits(3)
    cluster.allow(role)
    with as_role() as connection:
        assert connection.execute(QUERY.encode()).fetchone() == (1,)
        assert connection.execute("SELECT waiting FROM cluster.autoscaling WHERE queue = 'default'").fetchone() == (3,)
        for other in ("mail_jobs", "cluster.nodes", "cluster.queues"):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(f"SELECT FROM {other}".encode())


@pytest.mark.parametrize("statement", ["SELECT FROM cluster.autoscaling", "SELECT cluster.survey_job_tables('30 s')"])
def test_a_role_without_grants_learns_nothing(
    cluster: Cluster, as_role: Callable[[], psycopg.Connection[Any]], statement: str
) -> None:
    cluster.table()
    with as_role() as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_an_operator_of_a_caller_does_not_run_as_the_owner(
    cluster: Cluster, role: str, as_role: Callable[[], psycopg.Connection[Any]]
) -> None:
    """The caller's search path is not that of the function."""
    cluster.table()
    cluster.waits(1)
    cluster.allow(role)
    cluster.run(f"CREATE SCHEMA mine AUTHORIZATION {role}")
    with as_role() as connection:
        connection.execute(
            "CREATE FUNCTION mine.evil(cluster.job_status, cluster.job_status) RETURNS boolean LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'ran as %', current_user; END$$"
        )
        connection.execute(
            "CREATE OPERATOR mine.= (LEFTARG = cluster.job_status, RIGHTARG = cluster.job_status, FUNCTION = mine.evil)"
        )
        connection.execute("SET search_path = mine, pg_catalog")
        row = connection.execute("SELECT waiting FROM cluster.autoscaling WHERE queue = '*'").fetchone()
        assert row == (1,)


# --- what nodes tell ---

SOURCE = """
import asyncio
import time
from cluster import Job

class MailJob(Job):
    max_concurrency = None

    async def perform(self):
        await asyncio.Event().wait()

class QuickJob(Job):
    async def perform(self): ...

class PlainJob(Job):
    def perform(self): ...
"""


def test_a_node_tells_what_its_jobs_are_like(conn: psycopg.Connection, run_node: RunNode) -> None:
    setup = """
        INSERT INTO quick_jobs SELECT FROM generate_series(1, 5);
        INSERT INTO mail_jobs (queue) SELECT 'größer' FROM generate_series(1, 15);
    """
    run_node(SOURCE, setup=setup, processes=2, concurrency=10, heartbeat_interval="200ms")
    told = (
        "SELECT true FROM cluster.nodes, jsonb_to_recordset(work) "
        "AS w (job_type text, slots int, seconds float, attempts int) WHERE job_type = %s AND "
    )
    wait_for(conn, f"{told} attempts = 5 AND seconds BETWEEN 0 AND 1 AND w.slots = 1", ["QuickJob"])
    wait_for(conn, f"{told} w.slots = 10", ["PlainJob"])
    wait_for(conn, "SELECT (replicas, running) = (1, 15) FROM cluster.autoscaling WHERE queue = 'größer'")
