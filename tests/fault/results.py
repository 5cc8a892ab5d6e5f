"""The figures of many runs: kept as lines of JSON, and shown as the table of docs/guarantees.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fault.scenarios import SCENARIOS

DOCUMENT = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- figures: written by python -m tests.fault --guarantees -->", "<!-- end of figures -->"
COLUMNS = (
    "Fault", "Runs", "Jobs", "Interrupted", "Lost", "Run twice at once", "Over a limit", "Late writes", "…refused",
    "Slowest recovery",
)  # fmt: skip
GROUPS = (("lost", "stuck", "miscount", "other"), ("overlap", "unclaimed", "misfire"), ("overshoot",), ("late write",))


def append(path: Path, row: dict[str, Any]) -> None:
    """One more line, in one write: several runs may append at once."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(row) + "\n").encode())


def write_guarantees(path: Path) -> None:
    """Puts the table in its place in the document. Faults that the results have not keep the figures that they have there."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    before, rest = DOCUMENT.read_text().split(BEGIN)
    old, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(rows, old)}\n{END}{after}")


def table(rows: list[dict[str, Any]], old: str = "") -> str:
    """In Markdown: a line for each fault, and their sum. A run that did not come to its end counts as a broken promise."""
    faults = {scenario.fault for scenario in SCENARIOS.values()}
    figures_of = {fault: _figures_of_line(cells) for fault, *cells in map(_split, old.splitlines()) if fault in faults}
    runs_of = {name: [row for row in rows if row["scenario"] == name] for name in SCENARIOS}
    figures_of |= {SCENARIOS[name].fault: _figures(runs) for name, runs in runs_of.items() if runs}
    shown = [
        (scenario.fault, figures_of[scenario.fault]) for scenario in SCENARIOS.values() if scenario.fault in figures_of
    ]
    lines = [_line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)])]
    lines += [_line(_cells(fault, figures)) for fault, figures in shown]
    columns = list(zip(*(figures for _, figures in shown), strict=True))
    lines.append(_line([f"**{cell}**" for cell in _cells("all", [*map(sum, columns[:-1]), max(columns[-1])])]))
    return "\n".join(lines)


def _figures(runs: list[dict[str, Any]]) -> list[float]:
    """In the order of the columns."""

    def total(key: str) -> int:
        return sum(int(run.get(key, 0)) for run in runs)

    broken = [sum(int(run["violations"].get(kind, 0)) for run in runs for kind in group) for group in GROUPS]
    slowest = max(float(run.get("recovery", 0)) for run in runs)
    return [len(runs), total("jobs"), total("interrupted"), *broken, total("late_writes_refused"), slowest]


def _figures_of_line(cells: list[str]) -> list[float]:
    return [float(cell.removesuffix(" s").replace(",", "")) for cell in cells]


def _split(line: str) -> list[str]:
    return line.removeprefix("| ").removesuffix(" |").split(" | ")


def _cells(name: str, figures: list[float]) -> list[str]:
    return [name, *(f"{figure:,.0f}" for figure in figures[:-1]), f"{figures[-1]:.1f} s"]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
