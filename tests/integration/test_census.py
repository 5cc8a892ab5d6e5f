"""What the gauges of the whole cluster say, on one node at a time, and what it costs the database to know."""

from __future__ import annotations

import signal
from typing import Any

import psycopg
import pytest

from cluster import statements
from cluster.coordinator.census import MOST
from cluster.migration import migrate_schema
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until

SOURCE = """
import asyncio
from cluster import Job

class MailJob(Job):
    max_concurrency = 2

    async def perform(self):
        await asyncio.Event().wait()
"""


def gauge(node: NodeProcess, name: str) -> float | None:
    return node.metrics().get(name)


def shows(node: NodeProcess, name: str, value: float, timeout: float = 20) -> None:
    found: list[float | None] = []

    def look() -> bool:
        found.append(gauge(node, name))
        return found[-1] == value

    wait_until(look, f"{name} {value}", timeout, lambda: f"last seen: {found[-1]}")


def count(conn: psycopg.Connection, table: str) -> list[tuple[Any, ...]]:
    return conn.execute(statements.for_table("count_jobs", (table,)), {"most": MOST}).fetchall()


def make_table(conn: psycopg.Connection, name: str) -> None:
    migrate_schema(conn)
    conn.execute("SELECT cluster.create_job_table(%s)", [name])


def test_one_node_shows_what_waits_and_runs_and_another_when_it_has_died(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    setup = """
        INSERT INTO mail_jobs (run_at) SELECT now() - interval '1 hour' FROM generate_series(1, 5);
        INSERT INTO mail_jobs (queue) VALUES ('slow');
        INSERT INTO mail_jobs (run_at) VALUES (now() + interval '1 hour');
    """
    first = run_node(SOURCE, setup=setup, processes=1, queues="default")
    second = run_node(SOURCE, processes=1)
    wait_for(conn, "SELECT count(*) = 2 FROM mail_jobs WHERE status = 'running'")
    shows(first, 'cluster_nodes{state="live"}', 2, timeout=40)
    seen = first.metrics()
    assert seen['cluster_jobs{job_type="MailJob",queue="default",status="running"}'] == 2
    assert seen['cluster_jobs{job_type="MailJob",queue="default",status="not_started"}'] == 3
    assert seen['cluster_jobs{job_type="MailJob",queue="slow",status="not_started"}'] == 1
    assert seen['cluster_jobs{job_type="MailJob",queue="default",status="scheduled"}'] == 1
    assert 3600 <= seen['cluster_oldest_ready_job_age_seconds{job_type="MailJob",queue="default"}'] < 3700
    assert seen['cluster_concurrency_limit{job_type="MailJob"}'] == 2
    assert seen['cluster_concurrency_in_use{job_type="MailJob"}'] == 2
    assert seen['cluster_unroutable_jobs{job_type="MailJob"}'] == 0
    assert abs(seen["cluster_clock_offset_seconds"]) < 5
    assert "cluster_clock_offset_seconds" in second.metrics()
    assert not [name for name in second.metrics() if name.startswith(("cluster_jobs{", "cluster_nodes{"))]
    first.signal_all(signal.SIGKILL)
    shows(second, 'cluster_nodes{state="live"}', 1, timeout=60)
    shows(second, 'cluster_nodes{state="lost"}', 1, timeout=60)


def test_jobs_that_no_live_node_serves_are_told(conn: psycopg.Connection, run_node: RunNode) -> None:
    setup = """
        SELECT cluster.create_job_table('nobodys_jobs');
        INSERT INTO nobodys_jobs DEFAULT VALUES;
        INSERT INTO mail_jobs (queue) SELECT 'slow' FROM generate_series(1, 3);
    """
    node = run_node(SOURCE, setup=setup, processes=1, queues="default")
    shows(node, 'cluster_unroutable_jobs{job_type="MailJob"}', 3)
    assert gauge(node, 'cluster_unroutable_jobs{job_type="nobodys_jobs"}') == 1


def test_what_is_paused_is_told_and_how_large_tables_and_workers_are(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    setup = """
        SELECT cluster.create_job_table('dead_jobs');
        ALTER TABLE dead_jobs SET (autovacuum_enabled = false);
        INSERT INTO dead_jobs (queue) SELECT 'slow' FROM generate_series(1, 2000);
        DELETE FROM dead_jobs WHERE id <= 1500;
        SELECT pg_stat_force_next_flush();
        SELECT cluster.pause('dead_jobs'::regclass, 'a test'), cluster.pause('slow');
    """
    node = run_node(SOURCE, setup=setup, processes=1)
    shows(node, 'cluster_job_type_paused{job_type="dead_jobs"}', 1)
    seen = node.metrics()
    assert seen['cluster_job_type_paused{job_type="MailJob"}'] == 0
    assert {name: seen[name] for name in seen if name.startswith("cluster_queue_paused")} == {
        'cluster_queue_paused{queue="slow"}': 1
    }
    assert seen['cluster_table_live_rows{job_type="dead_jobs"}'] == 500
    assert seen['cluster_table_dead_rows{job_type="dead_jobs"}'] == 1500
    assert seen['cluster_table_bytes{job_type="dead_jobs"}'] > seen['cluster_table_bytes{job_type="MailJob"}'] > 0
    assert 10 * 2**20 < seen["cluster_largest_worker_memory_bytes"] <= seen["cluster_worker_memory_bytes"] < 2**30


def test_a_transaction_that_keeps_vacuum_back_is_told(
    conn: psycopg.Connection, database_url: str, run_node: RunNode
) -> None:
    with psycopg.connect(database_url) as holder:
        holder.execute("CREATE TABLE held ()")
        node = run_node(SOURCE, processes=1)
        wait_until(lambda: (gauge(node, "cluster_oldest_transaction_seconds") or 0) > 0, "the transaction is told")


def test_a_node_that_may_not_see_transactions_of_others_says_so_once_and_shows_the_rest(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    setup = """
        CREATE ROLE census_plain LOGIN;
        GRANT USAGE ON SCHEMA cluster TO census_plain;
        GRANT ALL ON ALL TABLES IN SCHEMA cluster TO census_plain;
        GRANT ALL ON mail_jobs TO census_plain;
    """
    node = run_node(SOURCE, setup=setup, role="census_plain", processes=1)
    try:
        shows(node, 'cluster_nodes{state="live"}', 1)
        assert len(node.log("statistics_hidden")) == 1
    finally:
        node.stop()
        conn.execute("DROP OWNED BY census_plain; DROP ROLE census_plain")


@pytest.mark.parametrize("queue", ["default", "other"])
def test_the_oldest_is_found_behind_better_priorities(conn: psycopg.Connection, queue: str) -> None:
    make_table(conn, "old_jobs")
    conn.execute("INSERT INTO old_jobs (queue, priority) SELECT %s, 1 FROM generate_series(1, 100)", [queue])
    conn.execute("INSERT INTO old_jobs (queue, priority, run_at) VALUES (%s, 90, now() - interval '1 day')", [queue])
    ages = {(found, status): (age, jobs) for found, status, age, jobs, _ in count(conn, "old_jobs")}
    age, jobs = ages[queue, "not_started"]
    assert age == pytest.approx(86_400, abs=60)
    assert jobs == 101


def test_an_empty_table_has_nothing_old(conn: psycopg.Connection) -> None:
    make_table(conn, "empty_jobs")
    assert count(conn, "empty_jobs") == [("default", "not_started", None, 0, MOST)]


def test_what_is_not_due_is_not_ready(conn: psycopg.Connection) -> None:
    make_table(conn, "later_jobs")
    conn.execute("INSERT INTO later_jobs (run_at) VALUES (now() + interval '1 minute')")
    assert ("default", "scheduled", None, 1, MOST) in count(conn, "later_jobs")


def test_jobs_parked_behind_a_full_key_are_counted(conn: psycopg.Connection) -> None:
    migrate_schema(conn)
    conn.execute("CREATE TABLE keyed_jobs (tenant bigint NOT NULL)")
    conn.execute("SELECT cluster.create_job_table('keyed_jobs', 'tenant')")
    conn.execute("INSERT INTO keyed_jobs (tenant) SELECT 1 FROM generate_series(1, 3)")
    conn.execute("UPDATE keyed_jobs SET parked = true WHERE id = 1")
    key = statements.Key("tenant", "bigint")
    rows = conn.execute(statements.for_table("count_jobs", ("keyed_jobs",), key=key), {"most": MOST}).fetchall()
    assert sum(jobs for *_, jobs, _ in rows) == 3


def test_a_census_reads_no_more_pages_for_what_has_finished_or_waits_beyond_its_bound(conn: psycopg.Connection) -> None:
    make_table(conn, "many_jobs")
    conn.execute("INSERT INTO many_jobs (priority) SELECT 1 + n %% 3 FROM generate_series(1, %s) AS n", [2 * MOST])
    conn.execute("INSERT INTO many_jobs (priority) SELECT 100 FROM generate_series(1, 50000)")
    conn.execute("UPDATE many_jobs SET status = 'succeeded', finished_at = now() WHERE priority = 100")
    conn.execute("VACUUM ANALYZE many_jobs")
    conn.execute("SET enable_seqscan = off")
    assert [(queue, status, jobs) for queue, status, _, jobs, _ in count(conn, "many_jobs")] == [
        ("default", "not_started", MOST)
    ]
    explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statements.for_table("count_jobs", ("many_jobs",))
    row = conn.execute(explain, {"most": MOST}).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    table = conn.execute("SELECT pg_relation_size('many_jobs') / 8192").fetchone()
    assert table is not None
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < table[0] / 3


def test_many_queues_share_the_bound(conn: psycopg.Connection) -> None:
    make_table(conn, "tenants_jobs")
    conn.execute("INSERT INTO tenants_jobs (queue) SELECT 'tenant ' || n %% 99 FROM generate_series(1, 11000) AS n", ())
    assert {(jobs, bound) for _, _, age, jobs, bound in count(conn, "tenants_jobs") if age is not None} == {(100, 100)}
