"""Throughput while another session keeps an old snapshot, as a backup or a forgotten transaction does: no row version goes away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import psycopg
from psycopg import IsolationLevel

from bench.harness import Bench, table_of
from bench.jobs.counted import CountedJob
from bench.jobs.counted_limited import LimitedCountedJob
from bench.results import Results
from bench.scenarios.feeder import Feeder

SECONDS = 600.0
SHARE_WITHOUT = 0.2
"""Of that time, to measure the same without: nothing changes meanwhile."""
SLICES = 10
SECONDS_TO_SETTLE = 5.0
TYPES = (("no limit", "counted", CountedJob), ("limit of 16", "counted_limited", LimitedCountedJob))
HELD, WITHOUT = "snapshot held", "without"


class _Course(NamedTuple):
    """Of one variant, a value for each slice. claims: milliseconds; None: there was none."""

    rates: list[float]
    claims: list[float | None]

    @property
    def rate(self) -> float:
        return sum(self.rates) / len(self.rates)

    @property
    def claim(self) -> float | None:
        known = [claim for claim in self.claims if claim is not None]
        return sum(known) / len(known) if known else None


def run(bench: Bench, results: Results) -> None:
    """Throughput and claims while another session holds a snapshot for 10 minutes."""
    seconds = results.parameters["seconds"] = bench.seconds(SECONDS)
    for _ in bench.rounds("snapshot", 1):
        for limit, module, job_class in TYPES:
            floor = None
            for state, length in ((WITHOUT, seconds * SHARE_WITHOUT), (HELD, seconds)):
                course = _measure(bench, module, table_of(job_class), length, held=state == HELD)
                _add(results, f"{limit}, {state}", course, length, floor)
                floor = course


def _measure(bench: Bench, module: str, table: str, seconds: float, *, held: bool) -> _Course:
    """The snapshot is taken when the load has settled."""
    course = _Course([], [])
    bench.load(table, 0)
    with bench.node(module) as node:
        feeder = Feeder(bench, table)
        feeder.run(min(SECONDS_TO_SETTLE, seconds))
        with _snapshot(bench) if held else nullcontext():
            claims = node.claims()
            for _ in range(SLICES):
                course.rates.append(feeder.run(seconds / SLICES))
                earlier, claims = claims, node.claims()
                course.claims.append(claims.mean_since(earlier))
    bench.load(table, 0)  # its gigabytes go back
    return course


@contextmanager
def _snapshot(bench: Bench) -> Iterator[None]:
    with psycopg.connect(bench.url) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT")  # the first statement takes the snapshot
        yield
        connection.rollback()


def _add(results: Results, variant: str, course: _Course, seconds: float, floor: _Course | None) -> None:
    """floor: the same without."""
    results.add(variant, "performed", "jobs/s", course.rate, floor and floor.rate)
    results.add(variant, "last slice", "jobs/s", course.rates[-1], floor and floor.rates[-1])
    results.add(variant, "claim", "ms", course.claim, floor and floor.claim)
    results.add(variant, "claim, last slice", "ms", course.claims[-1], floor and floor.claims[-1])
    middles = [(place + 0.5) * seconds / SLICES for place in range(SLICES)]
    results.add_points(variant, "performed", "jobs/s", "s", list(zip(middles, course.rates, strict=True)))
    known = [(middle, claim) for middle, claim in zip(middles, course.claims, strict=True) if claim is not None]
    results.add_points(variant, "claim", "ms", "s", known)
