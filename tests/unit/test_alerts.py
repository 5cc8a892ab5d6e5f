"""The rules for Prometheus: they name metrics that there are, each fires and is quiet as its case says, and has a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from cluster import metrics
from tests.support.exported import exported_metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "grafana" / "prometheus"
TEXT = (RULES / "rules.yaml").read_text(encoding="utf-8")
CASES = (RULES / "rules_test.yaml").read_text(encoding="utf-8")
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
ALERTS = re.findall(r"alert: (\w+)", TEXT)


def test_every_metric_of_the_rules_is_exported() -> None:
    named = set(re.findall(r"(?<![\w:])cluster_\w+", TEXT)) - {"cluster_jobs_late"}
    assert len(named) > 10
    assert named <= exported_metrics()


def test_the_objective_is_a_bucket() -> None:
    registry = CollectorRegistry()
    metrics.wait_seconds.observe(("ObjectiveJob", "default"), [1.0])
    registry.register(metrics.wait_seconds)
    bounds = set(re.findall(r'le="([\d.]+)"', generate_latest(registry).decode()))
    assert set(re.findall(r'le="([\d.]+)"', TEXT)) <= bounds


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_a_summary_a_runbook_a_dashboard_and_two_cases(alert: str) -> None:
    (block,) = re.findall(rf"alert: {alert}\n.*?(?=\n\n|\Z)", TEXT, re.DOTALL)
    assert re.search(r"severity: (critical|warning|info)", block)
    assert re.search(r"summary: '[^\n]+\.'", block)
    assert f"runbook_url: docs/runbooks.md#{alert.lower()}" in block
    (dashboard,) = re.findall(r"dashboard_url: '/d/([\w-]+)\?", block)
    assert (ROOT / "grafana" / "dashboards" / f"{dashboard}.json").is_file()
    (runbook,) = re.findall(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOKS, re.DOTALL | re.MULTILINE)
    assert [part in runbook for part in ("**Means.**", "**First look.**", "**Do.**", "**Over when**")] == [True] * 4
    assert f"name: {alert} fires" in CASES
    assert f"name: {alert} is quiet" in CASES


def test_there_is_no_runbook_without_an_alert() -> None:
    assert re.findall(r"^## (\w+)", RUNBOOKS, re.MULTILINE) == ALERTS


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("command", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")])
def test_prometheus_takes_the_rules_and_their_cases(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], check=False, cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
