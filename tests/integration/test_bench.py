"""The benchmark runs from end to end and writes what it promises. No speed is checked: the figures are those of a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.cli import main
from bench.page import write_page
from bench.results import REPOSITORY, Results, Run
from bench.scenarios import crowd, schedules, sessions
from cluster.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # the first test waits for the run


@pytest.fixture(scope="module")
def result_file(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    options = ["--repeats", "1", "--jobs", "300", "--probes", "5", "--seconds", "0.5", "--processes", "1"]
    command = [sys.executable, "-m", "bench", "floor", "drain", "latency", "offered", "types", *options]
    command += ["--database-url", postgres.url(), "--output", str(folder)]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert shown.returncode == 0, shown.stderr
    (path,) = folder.glob("*.json")
    return path


@pytest.fixture(scope="module")
def document(result_file: Path) -> Any:
    return json.loads(result_file.read_text())


def figures_of(document: Any, scenario: str, variant: str) -> dict[str, Any]:
    figures = document["scenarios"][scenario]["figures"]
    return {figure["measure"]: figure for figure in figures if figure["variant"] == variant}


def test_a_run_says_where_and_when_it_was_made(document: Any) -> None:
    assert {"date", "version", "commit", "machine", "python", "postgres", "options"} <= document.keys()
    assert document["machine"]["cores"] >= 1
    assert document["postgres"]["server_version"]
    assert "postgres" not in str(document["options"].values()), "a URL may hold a password"


@pytest.mark.parametrize(
    ("scenario", "variant", "measures"),
    [
        ("floor", "bare SQL", {"drained"}),
        ("floor", "product's statements", {"drained"}),
        ("drain", "one node", {"drained"}),
        ("latency", "LISTEN/NOTIFY client", {"p50", "p95", "p99"}),
        ("latency", "no limit", {"p50", "p95", "p99"}),
        ("latency", "limit of 16", {"p50", "p95", "p99"}),
        ("offered", "LISTEN/NOTIFY client, 500 jobs/s", {"p50", "p99", "inserted"}),
        ("offered", "1 jobs/s", {"p50", "p99", "inserted"}),
        ("offered", "5,000 jobs/s", {"p50", "p99", "inserted"}),
        ("types", "2 job types", {"p50", "p99"}),
        ("types", "52 job types", {"p50", "p99"}),
    ],
)
def test_every_variant_has_its_figures(document: Any, scenario: str, variant: str, measures: set[str]) -> None:
    figures = figures_of(document, scenario, variant)
    assert measures <= figures.keys()
    for measure in measures:
        figure = figures[measure]
        assert len(figure["values"]) == 1
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert figure["unit"]


@pytest.mark.parametrize(
    ("scenario", "variant", "measure"),
    [("drain", "one node", "drained"), ("latency", "no limit", "p50"), ("offered", "500 jobs/s", "p50")],
)
def test_the_product_is_compared_with_the_floor(document: Any, scenario: str, variant: str, measure: str) -> None:
    assert figures_of(document, scenario, variant)[measure]["ratio"] > 0


def test_rounds_of_one_quantity_become_one_figure() -> None:
    results = Results("drain")
    for value, floor in ((50.0, 100.0), (90.0, 100.0), (60.0, 100.0)):
        results.add("one node", "drained", "jobs/s", value, floor)
    results.add("one node", "CPU workers", "ms/1,000 jobs", None)
    (figure,) = results.figures
    assert figure.values == [50.0, 90.0, 60.0]
    assert figure.ratios == [0.5, 0.9, 0.6]


def snapshot_results() -> Results:
    """Of a scenario that takes minutes."""
    results = Results("snapshot")
    results.parameters["seconds"] = 600
    for limit in ("no limit", "limit of 16"):
        for state, rate in (("without", 20_000.0), ("snapshot held", 15_000.0)):
            for measure in ("performed", "last slice"):
                results.add(f"{limit}, {state}", measure, "jobs/s", rate, 20_000.0)
            results.add_points(f"{limit}, {state}", "performed", "jobs/s", "s", [(30.0, rate), (90.0, rate)])
    return results


def test_a_page_of_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--page", "nofile.json"])
    assert "there is no file nofile.json" in capsys.readouterr().err


def test_a_page_is_written_from_result_files(result_file: Path, tmp_path: Path) -> None:
    other = Run({}, {"server_version": "18.0"}, [snapshot_results()], datetime.now(UTC), "snapshot").write(tmp_path)
    page = write_page([result_file, other], tmp_path / "docs").read_text()
    assert "| no-op jobs drained by one node, no limit, rows kept |" in page
    assert "15,000/s = 0.75 × floor | ≥ 0.8 × floor | 20,000/s | **no** |" in page
    assert "| 5,000 jobs/s |" in page
    assert "Memory" not in page, "what was not measured is left out"
    for name in ("drain", "offered", "snapshot"):
        assert f"](performance/{name}.svg)" in page
        picture = tmp_path / "docs" / "performance" / f"{name}.svg"
        assert picture.stat().st_size < 60_000
        assert ET.parse(picture).getroot().tag.endswith("svg")


def test_a_small_crowd_is_measured_with_the_statements_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "NODES", (2,))
    monkeypatch.setattr(crowd, "TIMES", 5)
    path = main(["crowd", "--repeats", "1", "--output", str(tmp_path)])
    measures = figures_of(json.loads(path.read_text()), "crowd", "2 nodes")
    assert {"renew_lease", "list_live_nodes", "list_held_locks", "NOTIFY"} <= measures.keys()


def test_enqueueing_is_measured_on_each_kind_of_session(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "BATCHES", 1)
    monkeypatch.setattr(sessions, "MANY", 10)
    path = main(["sessions", "--repeats", "1", "--database-url", postgres.url(), "--output", str(tmp_path)])
    document = json.loads(path.read_text())
    for kind in sessions.BARE:
        measures = figures_of(document, "sessions", kind)
        assert measures.keys() == {"INSERT", "perform_later", "perform_many"}
        assert measures["perform_later"]["ratio"] > 0


def test_a_few_schedules_are_measured(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "NUMBER", 5)
    monkeypatch.setattr(schedules, "OCCURRENCES", 1)
    monkeypatch.setattr(schedules, "_at_once_by_cron", lambda *_: None)  # that would take a minute
    options = ["--seconds", "1.2", "--processes", "1", "--database-url", postgres.url(), "--output", str(tmp_path)]
    path = main(["schedules", *options])
    document = json.loads(path.read_text())
    for variant in (schedules.FEW, schedules.AT_ONCE):
        assert 0 < figures_of(document, "schedules", variant)["p99"]["median"] < 30_000
    assert {"transactions", "list_due_schedules"} <= figures_of(document, "schedules", schedules.NOT_DUE).keys()


def test_pages_of_the_dashboard_are_found_and_measured(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    options = ["--probes", "2", "--seconds", "1", "--rows", "500", "--database-url", postgres.url()]
    path = main(["dashboard", *options, "--output", str(tmp_path)])
    document = json.loads(path.read_text())
    for page in ("/", "/errors", "/queues", "/nodes", "/audit", "/charts", "/{table}"):
        assert figures_of(document, "dashboard", page).keys() == {"p50", "p95", "size"}, page
    for viewers in ("1 viewer", "50 viewers"):
        figures = figures_of(document, "dashboard", viewers)
        assert figures["transactions"]["median"] <= 10, "not two for each of them"
