"""Throughput under a global limit: at most 16 jobs may run at any instant, so each claim waits for finishes."""

from __future__ import annotations

from bench.harness import Bench, table_of
from bench.jobs.limited import LimitedJob
from bench.results import Results
from bench.scenarios import drain, floor

SHARE = 4
"""Of the jobs of a drain one in so many: it takes longer."""


def run(bench: Bench, results: Results) -> None:
    """The same with the default limit of 16 at a time."""
    for _ in bench.rounds("limited"):
        rate = floor.measure(bench, results)
        jobs = max(1, bench.jobs() // SHARE)
        drain.measure(bench, results, "limit of 16", table_of(LimitedJob), "limited", rate, jobs=jobs)
