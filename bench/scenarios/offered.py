"""Start latency and CPU against the number of jobs that arrive each second, which a single client inserts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from bench import bare
from bench.harness import PLACES, Bench, Cpu, table_of
from bench.jobs.probe import ProbeJob
from bench.results import Results
from bench.scenarios.latency import bare_client
from bench.scenarios.producer import add_percentiles, insert_jobs, latencies


class Load(NamedTuple):
    """Jobs a second, for so many seconds. rows: of one INSERT; more than one where single ones would be the bottleneck."""

    rate: int
    seconds: float
    rows: int = 1

    @property
    def variant(self) -> str:
        return f"{self.rate:,} jobs/s"

    def pauses(self, seconds: float) -> list[float]:
        """Of the client, for this long."""
        inserts = min(PLACES, round(self.rate * seconds)) // self.rows
        return [self.rows / self.rate] * max(2, inserts)


LOADS = (Load(1, 20), Load(50, 10), Load(500, 6), Load(5000, 5, rows=10))
FLOOR = LOADS[2]
FLOOR_VARIANT = f"LISTEN/NOTIFY client, {FLOOR.variant}"
SECONDS_TO_WARM_UP = 1.0


def run(bench: Bench, results: Results) -> None:
    """Start latency and CPU at 1, 50, 500 and 5,000 jobs/s."""
    for _ in bench.rounds("offered", 2):
        with bare_client(bench) as client:
            before = bench.cpu(client)
            began = time.monotonic()
            inserted = insert_jobs(bench, bare.TABLE, FLOOR.pauses(bench.seconds(FLOOR.seconds)), "number")
            floor = latencies(bench, inserted)
            floor_cpu = _add_cpu(results, FLOOR_VARIANT, before, bench.cpu(client), len(inserted), began)
        _add(results, FLOOR_VARIANT, inserted, floor)
        table = table_of(ProbeJob)
        with bench.node("probe") as node:
            latencies(bench, insert_jobs(bench, table, FLOOR.pauses(SECONDS_TO_WARM_UP)))
            for load in LOADS:
                before = bench.cpu(node)
                began = time.monotonic()
                inserted = insert_jobs(bench, table, load.pauses(bench.seconds(load.seconds)), rows=load.rows)
                found = latencies(bench, inserted)
                compared = (floor, floor_cpu) if load is FLOOR else (None, None)
                _add_cpu(results, load.variant, before, bench.cpu(node), len(inserted), began, compared[1])
                _add(results, load.variant, inserted, found, compared[0])


def _add(
    results: Results, variant: str, inserted: Sequence[int], found: list[float], floor: list[float] | None = None
) -> None:
    add_percentiles(results, variant, found, floor)
    last = inserted.count(inserted[-1])
    results.add(variant, "inserted", "jobs/s", (len(inserted) - last) / (inserted[-1] - inserted[0]) * 1e9)


def _add_cpu(
    results: Results, variant: str, before: Cpu, after: Cpu, jobs: int, began: float, floor: float | None = None
) -> float:
    """Milliseconds per job of each kind of process, and in all per job, which is returned, and per second."""
    total = 0.0
    for kind in ("coordinators", "workers", "postgres"):
        first, last = getattr(before, kind), getattr(after, kind)
        if last:
            total += (last - first) * 1000
            results.add(variant, f"CPU {kind}", "ms/job", (last - first) * 1000 / jobs)
    if total:
        results.add(variant, "CPU in all", "ms/job", total / jobs, floor)
        results.add(variant, "CPU a second", "ms/s", total / (time.monotonic() - began))
    return total / jobs
