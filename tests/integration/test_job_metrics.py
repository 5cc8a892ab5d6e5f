"""Metrics of job code on /metrics: added up over the worker processes, and right when those come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY

from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until

SOURCE = """
import os
from prometheus_client import Counter, Gauge, Histogram, Summary
from cluster import Job

mails = Counter("app_mails", "Mails sent", ["country"])
seconds = Histogram("app_send_seconds", "Of one mail", ["country"], buckets=(1, 10))
size = Summary("app_mail_bytes", "Of one mail")
connections = Gauge("app_connections", "Open now")
oldest = Gauge("app_oldest", "Largest of all", multiprocess_mode="max")
untouched = Counter("app_untouched", "Never counted")

class MailJob(Job):
    country: str

    async def perform(self):
        mails.labels(self.country).inc()
        seconds.labels(self.country).observe(5)
        size.observe(2)
        connections.set(1)
        oldest.set(self.id)

class CountAndDieJob(Job):
    max_attempts = 1

    def perform(self):
        mails.labels("dead").inc()
        if self.id % 5 == 0:
            os._exit(1)

class ClashJob(Job):
    def perform(self):
        Gauge("cluster_jobs_claimed_total", "Mine").set(7)
        Gauge("app_mails", "A counter elsewhere", registry=None).set(7)

class SprawlJob(Job):
    def perform(self):
        for number in range(11_000):
            mails.labels(str(number)).inc()
"""


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    """Migrating imports the jobs in the test's process, where each test would define the same metrics anew."""
    before = list(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names).difference(before):
        REGISTRY.unregister(collector)


def insert_mails(conn: psycopg.Connection, count: int) -> None:
    conn.execute("INSERT INTO mail_jobs (country) SELECT 'is' FROM generate_series(1, %s)", [count])


def wait_done(conn: psycopg.Connection, table: str) -> None:
    wait_for(conn, f"SELECT bool_and(status IN ('succeeded', 'failed')) FROM {table}")


def shows(node: NodeProcess, name: str, value: float) -> None:
    wait_until(lambda: node.metrics().get(name) == value, f"{name} is {value}; {node.metrics().get(name)}")


def test_all_workers_add_up(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=2)
    shows(node, "app_untouched_total", 0)
    insert_mails(conn, 300)
    wait_done(conn, "mail_jobs")
    shows(node, 'app_mails_total{country="is"}', 300)
    shows(node, 'app_send_seconds_bucket{country="is",le="1.0"}', 0)
    shows(node, 'app_send_seconds_bucket{country="is",le="10.0"}', 300)
    shows(node, 'app_send_seconds_bucket{country="is",le="+Inf"}', 300)
    shows(node, 'app_send_seconds_count{country="is"}', 300)
    shows(node, 'app_send_seconds_sum{country="is"}', 1500)
    shows(node, "app_mail_bytes_sum", 600)
    shows(node, "app_oldest", 300)


def test_what_ended_jobs_have_counted_outlives_their_process(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=2)
    conn.execute("INSERT INTO count_and_die_jobs SELECT FROM generate_series(1, 50)")
    wait_done(conn, "count_and_die_jobs")
    (failed,) = conn.execute("SELECT count(*) FROM count_and_die_jobs WHERE status = 'failed'").fetchone() or (0,)
    assert failed == 10
    # That of an attempt which takes its process with it is lost.
    shows(node, 'app_mails_total{country="dead"}', 40)


def test_a_gauge_leaves_with_its_process(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1, recycle_jobs=30)
    insert_mails(conn, 20)
    wait_done(conn, "mail_jobs")
    shows(node, "app_connections", 1)
    insert_mails(conn, 10)
    shows(node, "app_connections", 0)
    shows(node, 'app_mails_total{country="is"}', 30)


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_memory_stays_flat_over_200_replaced_workers_and_100000_updates(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=2, recycle_jobs=50)
    recycled = 'cluster_worker_exits_total{reason="recycled"}'
    seen: list[float] = []
    mails = 0
    for replaced in (100, 200, 300):
        while mails < replaced * 500 or node.metrics().get(recycled, 0) < replaced:
            insert_mails(conn, 1000)
            mails += 1000
            wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM mail_jobs", timeout=60)
            conn.execute("TRUNCATE mail_jobs")
        shows(node, 'app_mails_total{country="is"}', mails)
        seen.append(resident(node.pid))
    assert seen[-1] - seen[0] < 2, f"the coordinator grew: {seen} MiB"


def test_one_named_like_the_nodes_own_is_refused_by_name(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    insert_mails(conn, 1)
    shows(node, 'app_mails_total{country="is"}', 1)
    conn.execute("INSERT INTO clash_jobs DEFAULT VALUES")
    wait_done(conn, "clash_jobs")
    wait_until(lambda: len(node.log("job_metric_refused")) == 2, "both are refused")
    assert {line["metric"] for line in node.log("job_metric_refused")} == {"cluster_jobs_claimed_total", "app_mails"}
    shows(node, 'cluster_jobs_claimed_total{job_type="ClashJob",queue="default"}', 1)
    insert_mails(conn, 1)
    shows(node, 'app_mails_total{country="is"}', 2)


def test_too_many_series_are_left_out_and_told_of(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO sprawl_jobs DEFAULT VALUES")
    wait_done(conn, "sprawl_jobs")
    wait_until(lambda: bool(node.log("job_metric_refused")), "it is told")
    assert "labels with few values" in node.log("job_metric_refused")[0]["why"]
    insert_mails(conn, 1)
    wait_done(conn, "mail_jobs")
    assert 9_900 < sum(name.startswith("app_mails_total") for name in node.metrics()) <= 10_000


def test_a_folder_for_other_processes_metrics_changes_nothing(
    conn: psycopg.Connection, run_node: RunNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "missing"))
    node = run_node(SOURCE, processes=2)
    insert_mails(conn, 10)
    wait_done(conn, "mail_jobs")
    shows(node, 'app_mails_total{country="is"}', 10)
    shows(node, 'cluster_jobs_claimed_total{job_type="MailJob",queue="default"}', 10)
    assert not (tmp_path / "missing").exists()
