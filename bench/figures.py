"""The figures of result files, looked up by scenario, variant and measure. Of files with the same scenario the last one counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """One result file, and the scenarios that are taken from it."""

    document: dict[str, Any]
    scenarios: list[str] = field(default_factory=list)


class Figures:
    """None for what was not measured."""

    def __init__(self, files: Iterable[Path]) -> None:
        documents = [json.loads(path.read_text()) for path in files]
        by_name = {name: document for document in documents for name in document["scenarios"]}
        self.sources = [
            Source(document, [name for name, of in by_name.items() if of is document]) for document in documents
        ]
        self._scenarios: dict[str, dict[str, Any]] = {
            name: document["scenarios"][name] for name, document in by_name.items()
        }

    def median(self, scenario: str, variant: str, measure: str) -> float | None:
        """Over the rounds."""
        figure = self._figure(scenario, variant, measure)
        return float(figure["median"]) if figure else None

    def ratio(self, scenario: str, variant: str, measure: str) -> float | None:
        """To the floor, or to what the scenario compares with; the median over the rounds."""
        figure = self._figure(scenario, variant, measure)
        return float(figure["ratio"]) if figure and figure["ratio"] is not None else None

    def variants(self, scenario: str) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(figure["variant"] for figure in self._all(scenario, "figures")))

    def rounds(self, scenario: str, variant: str, measure: str) -> list[list[tuple[float, float]]]:
        """The course of each round, as points."""
        found = [series["rounds"] for series in self._all(scenario, "series") if _is(series, variant, measure)]
        return found[0] if found else []

    def parameter(self, scenario: str, name: str) -> float | None:
        value = self._scenarios.get(scenario, {}).get("parameters", {}).get(name)
        return None if value is None else float(value)

    def has(self, scenario: str) -> bool:
        return scenario in self._scenarios

    def _figure(self, scenario: str, variant: str, measure: str) -> dict[str, Any] | None:
        found = [figure for figure in self._all(scenario, "figures") if _is(figure, variant, measure)]
        return found[0] if found else None

    def _all(self, scenario: str, kind: str) -> list[dict[str, Any]]:
        return list(self._scenarios.get(scenario, {}).get(kind, []))


def _is(entry: dict[str, Any], variant: str, measure: str) -> bool:
    return (entry["variant"], entry["measure"]) == (variant, measure)


def shown(value: float | None, unit: str = "") -> str:
    """For people, with three digits or so; a dash for what is not known."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 or value.is_integer() else 1 if abs(value) >= 10 else 2
    return f"{value + 0.0:,.{digits}f}{unit}"
