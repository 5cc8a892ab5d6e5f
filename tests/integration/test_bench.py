"""The benchmark runs from end to end and writes what it promises. No speed is checked: the figures are those of a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from bench.results import REPOSITORY, Results
from cluster.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def document(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The JSON of one small run."""
    folder = tmp_path_factory.mktemp("bench")
    options = ["--repeats", "1", "--jobs", "300", "--probes", "10", "--processes", "1"]
    command = [sys.executable, "-m", "bench", "floor", "drain", "latency", *options]
    command += ["--database-url", postgres.url(), "--output", str(folder)]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert shown.returncode == 0, shown.stderr
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


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
    ],
)
def test_every_variant_has_its_figures(document: Any, scenario: str, variant: str, measures: set[str]) -> None:
    figures = {figure["measure"]: figure for figure in document["scenarios"][scenario] if figure["variant"] == variant}
    assert measures <= figures.keys()
    for measure in measures:
        figure = figures[measure]
        assert len(figure["values"]) == 1
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert figure["unit"]


@pytest.mark.parametrize(
    ("scenario", "variant", "measure"), [("drain", "one node", "drained"), ("latency", "no limit", "p50")]
)
def test_the_product_is_compared_with_the_floor(document: Any, scenario: str, variant: str, measure: str) -> None:
    (figure,) = [
        figure
        for figure in document["scenarios"][scenario]
        if (figure["variant"], figure["measure"]) == (variant, measure)
    ]
    assert figure["ratio"] > 0


def test_rounds_of_one_quantity_become_one_figure() -> None:
    results = Results("drain")
    for value, floor in ((50.0, 100.0), (90.0, 100.0), (60.0, 100.0)):
        results.add("one node", "drained", "jobs/s", value, floor)
    results.add("one node", "CPU workers", "ms/1,000 jobs", None)
    (figure,) = results.figures
    assert figure.values == [50.0, 90.0, 60.0]
    assert figure.ratios == [0.5, 0.9, 0.6]
