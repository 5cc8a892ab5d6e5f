"""Metrics of job code, added up over the worker processes of this node: what a process has counted outlives it, its gauges do not.

Written by the loop as workers report, read by the scraping thread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cluster import events
from cluster.frames import FrameError, Series

MOST_SERIES = 10_000
"""Of one node. A label for each customer must not end it, nor Prometheus."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values."""


class JobMetrics:
    """Give it every frame of every worker, and tell it which have ended. registry: of the node's own metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._families: dict[str, _Family] = {}
        self._numbered: dict[Hashable, list[_Sum | None]] = {}
        """The series of each worker, as it numbers them. None: refused."""
        self._series = 0
        self._refused: set[str] = set()

    def take(self, worker: Hashable, new: Sequence[Series], changes: Sequence[tuple[int, float]]) -> None:
        """FrameError: it speaks of a series that it has not named."""
        numbered = self._numbered.setdefault(worker, [])
        numbered += map(self._admit, new)
        for number, value in changes:
            if not 0 <= number < len(numbered):
                raise FrameError("the number of a series")
            found = numbered[number]
            if found is not None:
                found.add(worker, value)

    def forget(self, worker: Hashable) -> None:
        """It has ended."""
        for found in self._numbered.pop(worker, ()):
            if found is not None:
                found.gauges.pop(worker, None)

    def _admit(self, series: Series) -> _Sum | None:
        """None: refused, and named once in the log."""
        try:
            family = self._families.get(series.family) or self._register(series)
            if family.kind != series.kind:
                raise ValueError(f"there is a {family.kind} of this name already")
            found = family.find(series)
            if found is None:
                if self._series >= MOST_SERIES:
                    raise ValueError(f"job code has {MOST_SERIES:,} series on this node: use labels with few values")
                self._series += 1
                found = family.add(series)
        except ValueError as error:
            if series.family not in self._refused:
                self._refused.add(series.family)
                events.job_metric_refused(series.family, str(error))
            return None
        return found

    def _register(self, series: Series) -> _Family:
        """ValueError: why it can't be."""
        if not _NAME.fullmatch(series.family) or not all(map(_LABEL.fullmatch, series.label_names)):
            raise ValueError("its name, or that of a label, is not one that every Prometheus takes")
        family = _Family(series)
        try:
            self._registry.register(family)
        except ValueError:
            raise ValueError("the node has one of this name, or something of its kind: give yours another") from None
        self._families[series.family] = family
        return family


class _Sum:
    """One series over all workers."""

    def __init__(self, series: Series) -> None:
        self._mode = series.mode.removeprefix("live")
        self._is_gauge = series.kind == "gauge"
        self._total = 0.0
        self.gauges: dict[Hashable, float] = {}
        """Of each worker that lives; the one that spoke last at the end."""

    def add(self, worker: Hashable, value: float) -> None:
        if self._is_gauge:
            self.gauges.pop(worker, None)
            self.gauges[worker] = value
        elif not math.isnan(value):  # it would stay for ever
            self._total += value

    @property
    def value(self) -> float:
        values = list(self.gauges.values())
        match self._mode:
            case "min" if values:
                return min(values)
            case "max" if values:
                return max(values)
            case "mostrecent" if values:
                return values[-1]
            case _:
                return sum(values) if self._is_gauge else self._total


class _Family(Collector):
    """A metric with all its series."""

    def __init__(self, series: Series) -> None:
        self.kind = series.kind
        self._name, self._text = series.family, series.text
        self._points: dict[_Labels, dict[tuple[str, str], _Sum]] = {}
        """By labels; the sums by name, and upper bound where they are of a bucket."""

    def find(self, series: Series) -> _Sum | None:
        labels, key = _place(series)
        return self._points.get(labels, {}).get(key)

    def add(self, series: Series) -> _Sum:
        labels, key = _place(series)
        sums = self._points.get(labels, {})
        made = _Sum(series)
        self._points[labels] = {**sums, key: made}  # the scraping thread may be reading the other
        return made

    def describe(self) -> list[Metric]:
        return [Metric(self._name, self._text, self.kind)]

    def collect(self) -> Iterator[Metric]:
        (family,) = self.describe()
        for labels, sums in list(self._points.items()):
            below = 0.0
            for (name, bound), found in sorted(sums.items(), key=_order):
                if bound:
                    below += found.value  # each holds its own; Prometheus wants what is up to and including it
                    family.add_sample(name, {**dict(labels), "le": bound}, below)
                else:
                    family.add_sample(name, dict(labels), found.value)
            if self.kind == "histogram":
                family.add_sample(f"{self._name}_count", dict(labels), below)
        yield family


def _place(series: Series) -> tuple[_Labels, tuple[str, str]]:
    labels = dict(zip(series.label_names, series.labels, strict=True))
    bound = labels.pop("le", "") if series.kind == "histogram" else ""
    return tuple(labels.items()), (series.name, bound)


def _order(item: tuple[tuple[str, str], _Sum]) -> tuple[bool, float]:
    """Buckets first, from below."""
    (_, bound), _ = item
    return not bound, float(bound or 0)
