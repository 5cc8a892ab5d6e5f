"""Every query of every dashboard finds data: in Postgres, or in a Prometheus that scrapes a cluster with load and faults."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest

from grafana.sql_queries import COUNTS
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.rows import refuse, run

FOLDER = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
ALL = {"cluster": ".*", "job_type": ".*", "queue": ".*", "node": ".*"}
"""Variables as Grafana fills them in for "All"."""
AT_REST = {
    "Clock", "Draining", "Heartbeat age", "Held back", "Listening connections made anew", "Lost", "More than a second late",
    "Nodes", "Silent", "Stopped",
}  # fmt: skip
"""Panels that may show nothing but 0 here."""

SOURCE = """
import asyncio
from datetime import timedelta
from cluster import Cancel, ConstantBackoff, Fail, Job

class MailJob(Job):
    max_concurrency = 2
    queue = "mail"
    async def perform(self):
        await asyncio.sleep(0.05)

class FlakyJob(Job):
    number: int
    backoff = ConstantBackoff(timedelta(minutes=1))
    timeout = timedelta(seconds=0.3)
    async def perform(self):
        match self.number % 5:
            case 0:
                raise ValueError("out of luck")
            case 1:
                await asyncio.sleep(5)
            case 2:
                return Cancel("not wanted")
            case 3:
                return Fail("not like this")

class BriefJob(Job):
    async def perform(self):
        await asyncio.sleep(1)

class LongJob(Job):
    max_concurrency = None
    async def perform(self):
        await asyncio.sleep(600)

class OddJob(Job):
    label: str
    async def perform(self):
        pass
"""
SETUP = """
SELECT cluster.create_job_table('nobodys_jobs');
INSERT INTO nobodys_jobs DEFAULT VALUES;
INSERT INTO mail_jobs (run_at) VALUES (now() + interval '1 hour');
INSERT INTO mail_jobs (run_at) SELECT now() - interval '1 minute' FROM generate_series(1, 3000);
INSERT INTO flaky_jobs (number) SELECT n FROM generate_series(1, 20) AS n;
SELECT cluster.pause('later'), cluster.pause('nobodys_jobs'::regclass);
INSERT INTO cluster.schedules (name, job_table, every, overlap)
    VALUES ('fires', 'mail_jobs', '1 s', 'allow'), ('waits', 'mail_jobs', '1 s', 'skip');
INSERT INTO cluster.schedules (name, job_table, job_values, every, expect_within)
    VALUES ('overdue', 'odd_jobs', '{"label": "later", "queue": "later"}', '1 s', '1 s');
INSERT INTO cluster.schedules (name, job_table, every, active) VALUES ('idle', 'mail_jobs', '1 hour', false);
INSERT INTO cluster.schedules (name, job_table, every) VALUES ('stopped', 'mail_jobs', '1 hour');
INSERT INTO cluster.schedules (name, job_table, every, on_error) VALUES ('refused', 'nobodys_jobs', '1 s', 'keep');
ALTER TABLE nobodys_jobs ADD CHECK (schedule IS NULL) NOT VALID;
"""
TABLES = "mail_jobs, flaky_jobs, long_jobs, odd_jobs, brief_jobs, nobodys_jobs"


class Asked(NamedTuple):
    """One query of a panel or of an annotation."""

    dashboard: str
    panel: str
    target: Mapping[str, Any]
    """As Grafana's JSON has it."""


def queries() -> Iterator[Asked]:
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield Asked(path.stem, panel["title"], target)
        for variable in dashboard["templating"]["list"]:
            if variable["name"] in {"job_type", "queue", "node"}:  # there is no label `cluster` here
                yield Asked(path.stem, variable["name"], {"expr": _of_variable(variable["query"]["query"])})
            if variable["name"] == "job_table":
                yield Asked(path.stem, variable["name"], {"rawSql": variable["query"]})
        for mark in dashboard["annotations"]["list"]:
            target = {"expr": mark["expr"]} if "expr" in mark else mark["target"]
            if mark["datasource"]["uid"] in {"${datasource}", "${postgres}"}:
                yield Asked(path.stem, mark["name"], target)


def _of_variable(query: str) -> str:
    """PromQL for what Grafana asks in another way."""
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert match, query
    return f"count by ({match[2]}) ({match[1]})"


@pytest.mark.slow
@pytest.mark.needs("prometheus")
@pytest.mark.timeout(180)
def test_every_panel_finds_data_in_a_cluster_with_a_mixed_load_and_faults(
    conn: psycopg.Connection, database_url: str, tmp_path: Path, run_node: RunNode
) -> None:
    nodes = [
        run_node(SOURCE, setup=SETUP, processes=2, concurrency=4, queues="default,mail,later"),
        run_node(SOURCE, processes=1, concurrency=4, queues="default,mail,later"),
        run_node(SOURCE, processes=1, concurrency=4, queues="doomed"),
    ]
    ports = [node.http_port for node in nodes]
    with (
        psycopg.connect(database_url) as holder,
        running_prometheus(tmp_path, ports, FOLDER / "prometheus" / "rules.yaml") as prometheus,
    ):
        began = time.time()
        holder.execute("CREATE TABLE held ()")
        wait_until(lambda: len(prometheus.now("cluster_build_info")) == 3, "all nodes are scraped")
        make_faults(conn, nodes)
        for awaited in (
            'cluster_jobs{job_type="LongJob", status="running"} offset 2s',
            "(cluster_jobs_rescued_total offset 2s) > 0",
            'ALERTS{alertname="ClusterClaimsLost", alertstate="firing"}',
            "cluster_trouble offset 2s",
            "(cluster_schedules_overdue offset 2s) > 0",
            'increase(cluster_schedule_fires_total{result="skipped"}[20s] offset 2s) > 0',
        ):
            wait_until(lambda awaited=awaited: bool(prometheus.now(awaited)), f"Prometheus has {awaited}", 30)  # type: ignore[misc]
        wrong = [fault for asked in queries() for fault in faults_in_prometheus(prometheus, asked, began)]
        assert not wrong, "\n\n".join(wrong)
        assert first_to_do(prometheus) == 7
        with reader(conn):
            wrong = [fault for asked in queries() for fault in faults_in_postgres(conn, asked)]
        assert not wrong, "\n\n".join(wrong)


def make_faults(conn: psycopg.Connection, nodes: list[NodeProcess]) -> None:
    """Attempts that fail in every way, a refused outcome, killed workers, a lost node, a row that is gone, a stopped schedule."""
    refuse(
        conn, "odd_jobs", "(OLD.status, NEW.label) = ('running', 'odd') OR (NEW.status, NEW.label) = ('running', 'bad')"
    )
    run(conn, "INSERT INTO odd_jobs (label) VALUES ('odd'), ('bad'), ('fine')")
    run(conn, "INSERT INTO odd_jobs (label, queue) VALUES ('paused', 'later')")
    run(conn, "INSERT INTO flaky_jobs (number) SELECT n FROM generate_series(1, 20) AS n")
    run(conn, "UPDATE cluster.schedules SET state = 'stopped' WHERE name = 'stopped'")
    run(conn, "INSERT INTO brief_jobs DEFAULT VALUES")
    wait_for(conn, "DELETE FROM brief_jobs WHERE status = 'running' RETURNING true")
    run(conn, "INSERT INTO long_jobs (queue) SELECT 'doomed' FROM generate_series(1, 2)")
    run(conn, "INSERT INTO long_jobs SELECT FROM generate_series(1, 6)")
    wait_for(conn, "SELECT count(*) = 8 FROM long_jobs WHERE status = 'running'")
    for node in nodes[:2]:
        for worker in node.workers():
            os.kill(worker, signal.SIGKILL)
    nodes[2].signal_all(signal.SIGKILL)


# --- as Grafana asks ---


def filled_in(expression: str) -> str:
    """AssertionError: of a variable that nobody fills in."""
    text = expression.replace("$__rate_interval", "10s")
    for name, value in ALL.items():
        text = text.replace(f"${name}", value)
    assert not re.search(r"\$[a-zA-Z_{]", text), text
    return text


def faults_in_prometheus(prometheus: Prometheus, asked: Asked, began: float) -> Iterator[str]:
    if "expr" not in asked.target:
        return
    expression = filled_in(asked.target["expr"])
    what = f"{asked.dashboard}, {asked.panel}"
    if asked.target.get("instant") and not prometheus.now(expression):
        yield f"{what} finds nothing now:\n{expression}"
    found = prometheus.over(expression, began, time.time())
    numbers = [float(value) for series in found for _, value in series["values"]]
    if not [number for number in numbers if not math.isnan(number)]:
        yield f"{what} finds nothing:\n{expression}"
    elif not any(number > 0 for number in numbers) and asked.panel not in AT_REST:
        yield f"{what} stays at 0:\n{expression}"


def first_to_do(prometheus: Prometheus) -> int:
    """The rank of the worst that holds, as the overview shows it."""
    (asked,) = (asked for asked in queries() if "expr" in asked.target and asked.panel == "What to do first")
    (series,) = prometheus.now(filled_in(asked.target["expr"]))
    return int(series["value"][1])


def faults_in_postgres(conn: psycopg.Connection, asked: Asked) -> Iterator[str]:
    if "rawSql" not in asked.target:
        return
    text = asked.target["rawSql"].replace("${job_table:raw}", "flaky_jobs")
    text = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN now() - interval '1 hour' AND now()", text)
    text = re.sub(
        r"\$__timeGroupAlias\((\w+), \$__interval\)", r'floor(extract(epoch FROM \1) / 5) * 5 AS "time"', text
    )
    assert "$_" not in text, text
    found = run(conn, text)
    if not found or not any(value for row in found for value in row):
        yield f"{asked.dashboard}, {asked.panel} finds nothing:\n{text}"
    if asked.panel == "What to do first" and found != [(7,)]:
        yield f"{asked.panel}: {found}"


@contextmanager
def reader(conn: psycopg.Connection) -> Iterator[None]:
    """With the rights that docs/grafana.md gives to Grafana's role."""
    page = (FOLDER.parent / "docs" / "grafana.md").read_text(encoding="utf-8")
    (grants,) = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    role = f"grafana_{uuid4().hex[:8]}"
    run(conn, re.sub(r"\bgrafana\b", role, grants).replace("email_customers_jobs, resize_image_jobs", TABLES))
    try:
        run(conn, f"SET ROLE {role}")
        yield
    finally:
        run(conn, "RESET ROLE")
        run(conn, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_dashboard_without_prometheus_leaves_out_tables_that_were_dropped(conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.create_job_table('mail_jobs'), cluster.create_job_table('old_jobs')")
    conn.execute("INSERT INTO mail_jobs DEFAULT VALUES")
    conn.execute("DROP TABLE old_jobs")
    assert [row[2:4] for row in conn.execute(COUNTS.encode()).fetchall()] == [("not_started", 1)]
