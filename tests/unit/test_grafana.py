"""Dashboards: generated from code, of Grafana's schema, and pointing at what there is; provisioning and compose.yaml fit them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import ProcessCollector

from examples.newsletter.observe import grafana_variables
from grafana.advice import FIRST_STEPS, WHY, WORST
from grafana.build import as_json, files
from tests.support.exported import exported_metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grafana"
RULES = (FOLDER / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
UIDS = [f"jobcluster-{name}" for name in ("overview", "job-type", "nodes", "schedules", "postgres", "sql")]
ANNOTATION_KEYS = {"step", "titleFormat", "textFormat", "useValueForTime"}
"""That Grafana's data source reads, and the SDK does not know."""

Json = dict[str, Any]  # Any: JSON


def read(uid: str) -> Json:
    parsed: Json = json.loads((FOLDER / "dashboards" / f"{uid}.json").read_text(encoding="utf-8"))
    return parsed


def panels(uid: str) -> list[Json]:
    """Without headings."""
    return [panel for panel in read(uid)["panels"] if panel["type"] != "row"]


every_dashboard = pytest.mark.parametrize("uid", UIDS)


# --- what is generated ---


def test_generated_files_are_what_the_code_says() -> None:
    generated = files()
    assert sorted(path.stem for path in generated if path.suffix == ".json") == sorted(UIDS)
    assert {path.stem for path in (FOLDER / "dashboards").glob("*.json")} == set(UIDS)
    stale = [path.name for path, text in generated.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run `make dashboards`"


@every_dashboard
def test_grafanas_own_classes_read_all_of_it(uid: str) -> None:
    found = read(uid)
    for mark in found["annotations"]["list"]:
        for key in ANNOTATION_KEYS & mark.keys():
            del mark[key]
        if "rawSql" in mark.get("target", {}):
            del mark["target"]
    again = as_json(Dashboard.from_json(json.loads(json.dumps(found))))
    assert again == found


@pytest.mark.skipif("GRAFANA_SCHEMA" not in os.environ, reason="needs Grafana's schema: GRAFANA_SCHEMA")
@every_dashboard
def test_grafanas_schema_accepts_it(uid: str, tmp_path: Path) -> None:
    """With the folder of `npm install @grafana/schema typescript`. Its enumerations take no text, its annotations no query."""
    found = read(uid)
    for mark in found["annotations"]["list"]:
        mark["target"] = {"refId": "Anno"}
        for key in ANNOTATION_KEYS | {"expr"}:
            mark.pop(key, None)
    text = re.sub(r'("mode": "absolute"|"type": "value")', r"\1 as any", json.dumps(found))
    folder = Path(os.environ["GRAFANA_SCHEMA"])
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")
    (tmp_path / "check.ts").write_text(
        f'import type {{ Dashboard }} from "@grafana/schema";\nexport const checked: Dashboard = {text};\n'
    )
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    command = ["node", str(folder / "node_modules" / "typescript" / "bin" / "tsc"), *options, "check.ts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- what a panel has ---


@every_dashboard
def test_every_panel_has_a_unit_thresholds_and_a_description_of_what_to_do(uid: str) -> None:
    for panel in panels(uid):
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]
        shows, _, red = panel["description"].partition("\n\n**Red:** ")
        assert shows.endswith("."), panel["title"]
        assert len(red) > 20, panel["title"]
        assert red.endswith((".", "?")), panel["title"]
        assert "red" in json.dumps(panel["fieldConfig"]), f"{panel['title']} is never red"


@every_dashboard
def test_panels_lie_side_by_side_and_have_numbers_of_their_own(uid: str) -> None:
    everything = read(uid)["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    places = [
        (x, y)
        for panel in everything
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    assert {x for x, _ in places} == set(range(24))


@every_dashboard
def test_every_query_goes_to_the_chosen_data_source_and_cluster(uid: str) -> None:
    found = read(uid)
    variables = {variable["name"] for variable in found["templating"]["list"]}
    source = "postgres" if uid == "jobcluster-sql" else "datasource"
    assert found["templating"]["list"][0]["name"] == source
    for panel in panels(uid):
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == f"${{{source}}}"
            text = target.get("expr") or target["rawSql"]
            used = set(re.findall(r"\$\{?([a-z]\w*)", text)) - {"s"}  # %1$s of format()
            assert used <= variables, panel["title"]
            selectors = re.findall(r"\b(?:cluster_\w+|process_\w+|ALERTS|job_type:[\w:]+)(?:\{([^}]*)\})?", text)
            assert uid == "jobcluster-sql" or all('cluster=~"$cluster"' in selector for selector in selectors), text


@every_dashboard
def test_links_lead_to_dashboards_and_variables_that_there_are(uid: str) -> None:
    text = (FOLDER / "dashboards" / f"{uid}.json").read_text(encoding="utf-8")
    for target, query in re.findall(r"/d/([\w-]+)\?([^\"]*)", text) + re.findall(r"/d/([\w-]+)\?([^']*)'", RULES):
        names = {variable["name"] for variable in read(target)["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", query)) | set(re.findall(r"\$\{(\w+):queryparam\}", query)) <= names
    (link,) = read(uid)["links"]
    assert link["type"] == "dashboards"
    assert set(link["tags"]) <= set(read(uid)["tags"])


def test_every_metric_of_the_dashboards_is_exported() -> None:
    of_processes = {sample.name for metric in ProcessCollector(registry=None).collect() for sample in metric.samples}
    recorded = set(re.findall(r"record: (\S+)", RULES))
    texts = [target["expr"] for uid in UIDS for panel in panels(uid) for target in panel["targets"] if "expr" in target]
    named = {
        name for text in texts for name in re.findall(r"\b((?:cluster|process|job_type:\w+)[_:][\w:]+)(?=\{)", text)
    }
    assert len(named) > 30
    assert named - recorded - of_processes <= exported_metrics()


def test_advice_covers_every_alert_and_every_rank() -> None:
    assert list(FIRST_STEPS) == re.findall(r"alert: (\w+)", RULES)
    texts = {panel["title"]: json.dumps(panel["targets"]) for panel in panels("jobcluster-overview")}
    for title, ranks in (("What to do first", WORST), ("Why jobs wait", WHY)):
        asked = set(re.findall(r'\\"rank\\", \\"(\d+)\\"', texts[title]))
        assert asked == ranks.keys() - {"0"}


HEALTHY = {
    'cluster_nodes{state="live",instance="a"}': "2x80",
    'cluster_nodes{state="silent",instance="a"}': "0x80",
    'cluster_nodes{state="lost",instance="a"}': "1x80",
    'cluster_heartbeat_age_seconds{instance="a"}': "4x80",
    'cluster_worker_exits_total{reason="crashed",instance="a"}': "0x80",
    'cluster_jobs_finished_total{job_type="A",outcome="succeeded",instance="a"}': "0+10x80",
    'cluster_jobs_finished_total{job_type="A",outcome="failed",instance="a"}': "0x80",
    'cluster_unroutable_jobs{job_type="A",instance="a"}': "0x80",
    'cluster_oldest_ready_job_age_seconds{job_type="A",queue="mail",instance="a"}': "1x80",
    'cluster_oldest_transaction_seconds{instance="a"}': "1x80",
    'cluster_job_type_paused{job_type="A",instance="a"}': "0x80",
    'cluster_jobs{job_type="A",queue="mail",status="not_started",instance="a"}': "0x80",
    'cluster_slots{state="free",instance="a"}': "4x80",
    'cluster_concurrency_limit{job_type="A",instance="a"}': "2x80",
    'cluster_concurrency_in_use{job_type="A",instance="a"}': "1x80",
}
LIVE, SILENT, LOST, AGE, EXITS, _, FAILED, UNROUTABLE, OLDEST, TRANSACTION, PAUSED, READY, FREE, _, IN_USE = HEALTHY
TROUBLE = 'cluster_trouble{job_type="A",reason="table_locked",instance="a"}'
QUEUE_PAUSED = 'cluster_queue_paused{queue="mail",instance="a"}'
"""The state of a cluster, as series of promtool: one value each 15 s, 20 minutes long."""


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    ("title", "rank", "changes"),
    [
        ("What to do first", 0, {}),
        ("What to do first", 1, {PAUSED: "1x80"}),
        ("What to do first", 1, {PAUSED: "1x80", OLDEST: "400x80"}),
        ("What to do first", 1, {QUEUE_PAUSED: "1x80", OLDEST: "400x80"}),
        ("What to do first", 2, {SILENT: "1x80"}),
        ("What to do first", 2, {LOST: "1x40 2x40"}),
        ("What to do first", 3, {TRANSACTION: "2000x80"}),
        ("What to do first", 4, {OLDEST: "400x80"}),
        ("What to do first", 5, {FAILED: "0+5x80"}),
        ("What to do first", 6, {UNROUTABLE: "3x80", OLDEST: "400x80"}),
        ("What to do first", 7, {TROUBLE: "1x80", PAUSED: "1x80"}),
        ("What to do first", 8, {EXITS: "0+1x80"}),
        ("What to do first", 9, {AGE: "20x80"}),
        ("What to do first", 10, {LIVE: "0x80", AGE: "20x80"}),
        ("What to do first", 10, dict.fromkeys(HEALTHY, "_x80")),
        ("Why jobs wait", 0, {}),
        ("Why jobs wait", 1, {READY: "5x80"}),
        ("Why jobs wait", 2, {READY: "5x80", FREE: "0x80"}),
        ("Why jobs wait", 3, {READY: "5x80", FREE: "0x80", IN_USE: "2x80"}),
        ("Why jobs wait", 4, {READY: "5x80", QUEUE_PAUSED: "1x80"}),
        ("Why jobs wait", 5, {READY: "5x80", PAUSED: "1x80"}),
        ("Why jobs wait", 6, {READY: "5x80", UNROUTABLE: "5x80"}),
        ("Why jobs wait", 7, {READY: "5x80", TROUBLE: "1x80"}),
    ],
)
def test_the_overview_names_the_worst_and_the_reason(
    title: str, rank: int, changes: dict[str, str], tmp_path: Path
) -> None:
    (panel,) = (panel for panel in panels("jobcluster-overview") if panel["title"] == title)
    expression = panel["targets"][0]["expr"].replace("$cluster", ".*")
    labels = "{}" if title == "What to do first" else '{job_type="A"}'
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in (HEALTHY | changes).items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": "19m", "exp_samples": [{"labels": labels, "value": rank}]}
        ],
    }
    (tmp_path / "case.yaml").write_text(json.dumps({"tests": [case]}))  # JSON is YAML
    command = ["promtool", "test", "rules", "case.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- what is around them ---


def test_provisioning_asks_for_variables_that_observe_and_compose_set() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "provisioning").glob("*/*.yaml"))
    asked = set(re.findall(r": \$(\w+)$", text, re.MULTILINE))
    assert len(asked) == 8
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert asked <= compose["services"]["grafana"]["environment"].keys()
    assert asked <= grafana_variables("http://localhost:9090", {}).keys()


def test_what_compose_mounts_is_there() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = [volume.split(":") for service in services.values() for volume in service.get("volumes", [])]
    assert len(mounts) == 5
    assert all((FOLDER / source).exists() and mode == "ro" for source, _, mode in mounts)
    targets = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (static,) = targets["scrape_configs"][0]["static_configs"]
    command = services["newsletter"]["command"][-1]
    (ports,) = re.findall(r"--ports (\d+) (\d+)", command)
    assert static["targets"] == [f"newsletter:{port}" for port in ports]


@pytest.mark.needs("promtool")
def test_prometheus_takes_the_configuration_of_compose() -> None:
    command = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=FOLDER / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
