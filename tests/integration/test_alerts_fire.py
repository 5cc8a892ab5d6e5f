"""The alerts that the project ships fire at real faults, and resolve when these are over. Their minutes are seconds here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until
from tests.support.prometheus import Prometheus, running_prometheus

RULES = Path(__file__).parents[2] / "grafana" / "prometheus" / "rules.yaml"
LIMITS = {
    'le="30.0"': 'le="1.0"',
    "> 300": "> 3",
    "_age_seconds) > 60": "_age_seconds) > 1",
    "> 1800": "> 5",
    "> 15": "> 3",
}
"""What the rules compare seconds with, and what is compared here."""
SOURCE = """
import asyncio
import os
from cluster import Job

class HoldJob(Job):
    max_concurrency = 2

    async def perform(self):
        while not open("go").read():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)

class FailJob(Job):
    max_attempts = 1

    async def perform(self):
        raise ValueError("out of luck")

class CrashJob(Job):
    max_attempts = 1

    async def perform(self):
        os._exit(1)

class BriefJob(Job):
    async def perform(self):
        await asyncio.sleep(1)
"""


def shortened(rules: str) -> str:
    """Minutes become seconds, and hours minutes."""
    for limit, short in LIMITS.items():
        assert limit in rules, f"the rules have no {limit} any more"
        rules = rules.replace(limit, short)
    return re.sub(r"(?<![\w])(\d+)([mh])\b", lambda match: f"{match[1]}{ {'m': 's', 'h': 'm'}[match[2]] }", rules)


class Alerts:
    """Those of one Prometheus."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus

    def fires(self, name: str, timeout: float = 60) -> None:
        wait_until(lambda: self._is_firing(name), f"{name} fires", timeout)

    def resolves(self, name: str, timeout: float = 60) -> None:
        wait_until(lambda: not self._is_firing(name), f"{name} resolves", timeout)

    def _is_firing(self, name: str) -> bool:
        return bool(self._prometheus.now(f'ALERTS{{alertname="{name}", alertstate="firing"}}'))


@contextmanager
def held(database_url: str, statement: str) -> Iterator[None]:
    """A transaction that is open meanwhile."""
    with psycopg.connect(database_url) as connection:
        connection.execute(statement.encode())
        yield


@pytest.mark.fault
@pytest.mark.needs("prometheus")
@pytest.mark.timeout(900)
def test_alerts_fire_at_real_faults_and_resolve_after_them(
    conn: psycopg.Connection, database_url: str, tmp_path: Path, run_node: RunNode
) -> None:
    start: Callable[[], NodeProcess] = lambda: run_node(  # noqa: E731
        SOURCE, processes=1, queues="default", heartbeat_interval="1s", lease="6s"
    )
    nodes = [start(), start(), start()]
    for node in nodes:
        (node.app_dir / "go").touch()
    rules = tmp_path / "rules.yaml"
    rules.write_text(shortened(RULES.read_text()))
    with running_prometheus(tmp_path, [node.http_port for node in nodes], rules) as prometheus:
        wait_until(lambda: len(prometheus.now("cluster_build_info")) == 3, "all nodes are scraped")
        alerts = Alerts(prometheus)

        # More jobs than a limit lets through.
        conn.execute("INSERT INTO hold_jobs SELECT FROM generate_series(1, 80)")
        alerts.fires("ClusterBacklogOld")
        alerts.fires("ClusterLimitFull")
        for node in nodes:
            (node.app_dir / "go").write_text("now")
        alerts.fires("ClusterJobsStartLate")
        for name in ("ClusterBacklogOld", "ClusterLimitFull", "ClusterJobsStartLate"):
            alerts.resolves(name)

        conn.execute("INSERT INTO fail_jobs SELECT FROM generate_series(1, 100)")
        alerts.fires("ClusterJobsFail")
        alerts.resolves("ClusterJobsFail")

        conn.execute("INSERT INTO crash_jobs SELECT FROM generate_series(1, 15)")
        alerts.fires("ClusterWorkersCrash")
        alerts.resolves("ClusterWorkersCrash")

        conn.execute("INSERT INTO brief_jobs (queue) VALUES ('nobody')")
        alerts.fires("ClusterJobsUnroutable")
        conn.execute("DELETE FROM brief_jobs WHERE queue = 'nobody'")
        alerts.resolves("ClusterJobsUnroutable")

        conn.execute("INSERT INTO brief_jobs DEFAULT VALUES")
        wait_for(conn, "DELETE FROM brief_jobs WHERE status = 'running' RETURNING true")
        alerts.fires("ClusterClaimsLost")
        alerts.resolves("ClusterClaimsLost")

        with held(database_url, "CREATE TABLE held ()"):
            alerts.fires("ClusterOldTransaction")
        alerts.resolves("ClusterOldTransaction")

        with held(database_url, "LOCK TABLE fail_jobs"):
            conn.execute("INSERT INTO hold_jobs DEFAULT VALUES")
            alerts.fires("ClusterTrouble")
        alerts.resolves("ClusterTrouble")

        with held(database_url, "LOCK TABLE cluster.nodes"):
            alerts.fires("ClusterLeaseNotRenewed")
        alerts.resolves("ClusterLeaseNotRenewed")

        nodes[2].kill()
        alerts.fires("ClusterNodeLost")
        alerts.resolves("ClusterNodeLost")

        for node in nodes[:2]:
            node.terminate()
        alerts.fires("ClusterHasNoNodes")
        nodes[0].wait_exit()
        nodes[0].start()
        alerts.resolves("ClusterHasNoNodes")
