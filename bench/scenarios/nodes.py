"""Throughput of several nodes on this machine, which they share with each other and with Postgres."""

from __future__ import annotations

from bench.harness import Bench, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results
from bench.scenarios import drain, floor


def run(bench: Bench, results: Results) -> None:
    """The drain with 1, 2 and 4 nodes."""
    for _ in bench.rounds("nodes", 2):
        rate = floor.measure(bench, results)
        for count in (1, 2, 4):
            drain.measure(bench, results, f"nodes: {count}", table_of(NoopJob), "noop", rate, nodes=count)
