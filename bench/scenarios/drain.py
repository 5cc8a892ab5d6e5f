"""Throughput: waiting no-op jobs, nodes that are up and warm, and the time from the first start to the last finish."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

from bench.harness import Bench, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results
from bench.scenarios import floor
from bench.scenarios.cpu import add_cpu
from bench.scenarios.lock_waits import LockWaits


def run(bench: Bench, results: Results) -> None:
    """No-op jobs without a limit, drained by one node with default settings."""
    for _ in bench.rounds("drain"):
        rate = floor.measure(bench, results)
        measure(bench, results, "one node", table_of(NoopJob), "noop", rate)


def measure(
    bench: Bench, results: Results, variant: str, table: str, module: str, floor_rate: float, nodes: int = 1,
    jobs: int | None = None, worker_processes: int | None = None,
) -> None:  # fmt: skip
    """One round. The rows are there before anybody may claim, so that loading them is not measured."""
    jobs = jobs or bench.jobs()
    with ExitStack() as stack:
        running = [
            stack.enter_context(bench.node(module, number, worker_processes=worker_processes))
            for number in range(1, nodes + 1)
        ]
        bench.warm_up(table)
        bench.pause(table, paused=True)
        bench.load(table, jobs)
        before = bench.cpu(*running)
        with LockWaits(bench.url) if nodes > 1 else nullcontext() as waits:
            bench.pause(table, paused=False)
            bench.wait_until_finished(table)
        add_cpu(results, variant, before, bench.cpu(*running), jobs)
    results.add(variant, "drained", "jobs/s", bench.jobs_per_second(table), floor_rate)
    if waits is not None:
        results.add(variant, "lock waits, mean", "sessions", waits.mean)
        results.add(variant, "lock waits, most", "sessions", waits.most)
