"""Start latency and CPU at a steady rate for one job type, among few and among many that have nothing to do."""

from __future__ import annotations

from bench.harness import Bench, table_of
from bench.jobs.idle_types import IDLE_CLASSES
from bench.jobs.probe import ProbeJob
from bench.results import Results
from bench.scenarios.cpu import add_cpu
from bench.scenarios.producer import add_percentiles, start_latencies
from bench.scenarios.steady import JOBS_PER_PROBE, RATE

FEW, MANY = "2 job types", f"{len(IDLE_CLASSES) + 2} job types"


def run(bench: Bench, results: Results) -> None:
    """Start latency and CPU at 500 jobs/s, to one of 2 and of 52 job types."""
    pauses = [1 / RATE] * (bench.options.probes * JOBS_PER_PROBE)
    table = table_of(ProbeJob)
    for _ in bench.rounds("types"):
        few: list[float] | None = None
        few_cpu: float | None = None
        for variant, module in ((FEW, "probe"), (MANY, "idle_types")):
            with bench.node(module) as node:
                start_latencies(bench, table, pauses[: len(pauses) // 10])
                before = bench.cpu(node)
                found = start_latencies(bench, table, pauses)
                cpu = add_cpu(results, variant, before, bench.cpu(node), len(pauses), few_cpu)
            add_percentiles(results, variant, found, few)
            few, few_cpu = few or found, few_cpu or cpu
