"""What a scenario has measured: the figures of all rounds, as a table to read and as JSON to keep."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster import __version__

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
FOLDER = Path(__file__).parent / "results"


@dataclass
class Figure:
    """One quantity of one variant, with a value for each round."""

    variant: str
    measure: str
    unit: str
    values: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """To the floor in the same round; empty: there is none to compare with."""


@dataclass
class Series:
    """How one quantity of one variant goes on, with a list of points (x, y) for each round."""

    variant: str
    measure: str
    unit: str
    x_unit: str
    rounds: list[list[tuple[float, float]]] = field(default_factory=list)


class Results:
    """Filled by a scenario. parameters: what it was run with, where the options leave that to the scenario."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.figures: list[Figure] = []
        self.series: list[Series] = []
        self.parameters: dict[str, float] = {}

    def add(self, variant: str, measure: str, unit: str, value: float | None, floor: float | None = None) -> None:
        """The value of one round. None: it can't be measured on this machine. floor: what it is compared with."""
        if value is None:
            return
        figure = self._figure(variant, measure, unit)
        figure.values.append(value)
        if floor:
            figure.ratios.append(value / floor)

    def add_points(
        self, variant: str, measure: str, unit: str, x_unit: str, points: Sequence[tuple[float, float]]
    ) -> None:
        """The course of one round. Not in the table: JSON and page have it."""
        for series in self.series:
            if (series.variant, series.measure) == (variant, measure):
                series.rounds.append(list(points))
                return
        self.series.append(Series(variant, measure, unit, x_unit, [list(points)]))

    def _figure(self, variant: str, measure: str, unit: str) -> Figure:
        for figure in self.figures:
            if (figure.variant, figure.measure) == (variant, measure):
                return figure
        figure = Figure(variant, measure, unit)
        self.figures.append(figure)
        return figure

    def table(self) -> Table:
        """Median and range of the rounds; fits into 80 columns."""
        table = Table(title=self.scenario, title_justify="left", width=80, pad_edge=False)
        table.add_column("variant", ratio=1)
        table.add_column("measure")
        for heading in ("median", "min – max", "× floor"):
            table.add_column(heading, justify="right", no_wrap=True)
        previous = ""
        for figure in self.figures:
            if previous not in {"", figure.variant}:
                table.add_section()
            table.add_row(
                figure.variant if figure.variant != previous else "",
                f"{figure.measure}, {figure.unit}",
                _shown(statistics.median(figure.values)),
                f"{_shown(min(figure.values))} – {_shown(max(figure.values))}",
                f"{statistics.median(figure.ratios):.2f}" if figure.ratios else "",
            )
            previous = figure.variant
        return table

    def show(self, console: Console) -> None:
        """Prints the table."""
        console.print(self.table())


@dataclass(frozen=True)
class Run:
    """Everything that one call of the benchmark has measured, and where."""

    options: dict[str, Any]
    postgres: dict[str, str]
    results: list[Results]
    started_at: datetime
    name: str

    def write(self, folder: Path) -> Path:
        """As JSON, in a file named by time and scenario."""
        path = folder / f"{self.started_at:%Y%m%dT%H%M%S}-{self.name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._document(), indent=2) + "\n")
        return path

    def _document(self) -> dict[str, Any]:
        return {
            "date": self.started_at.astimezone(UTC).isoformat(),
            "version": __version__,
            "commit": _git("rev-parse", "HEAD"),
            "changed_files": bool(_git("status", "--porcelain")),
            "machine": machine(),
            "python": platform.python_version(),
            "postgres": self.postgres,
            "options": self.options,
            "scenarios": {results.scenario: _scenario(results) for results in self.results},
        }


def machine() -> dict[str, Any]:
    """What the figures depend on most."""
    return {
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": f"{platform.system()} {platform.release()}",
        "load_at_start": os.getloadavg()[0],
    }


def _scenario(results: Results) -> dict[str, Any]:
    return {
        "parameters": results.parameters,
        "figures": _figures(results),
        "series": [asdict(series) for series in results.series],
    }


def _figures(results: Results) -> list[dict[str, Any]]:
    return [
        asdict(figure)
        | {
            "median": statistics.median(figure.values),
            "min": min(figure.values),
            "max": max(figure.values),
            "ratio": statistics.median(figure.ratios) if figure.ratios else None,
        }
        for figure in results.figures
    ]


def _shown(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def _git(*arguments: str) -> str | None:
    """None outside of a repository, or without git."""
    try:
        shown = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.strip()


def _first_value(path: Path, key: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
