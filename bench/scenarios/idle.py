"""What a node costs that has nothing to do."""

from __future__ import annotations

import time

from bench import processes
from bench.harness import Bench, Cpu
from bench.results import Results

WORKERS = 4
SECONDS = 30.0
SECONDS_TO_SETTLE = 5.0


def run(bench: Bench, results: Results) -> None:
    """CPU, memory and connections of a node with 4 workers, and CPU of Postgres, without any job."""
    workers = bench.options.processes or WORKERS
    variant = f"{workers} workers"
    seconds = results.parameters["seconds"] = bench.seconds(SECONDS)
    for _ in bench.rounds("idle", 1):
        with bench.node("noop", worker_processes=workers) as node:
            time.sleep(min(SECONDS_TO_SETTLE, seconds))
            before, first = bench.cpu(node), processes.memory(*processes.tree(node.pid))
            time.sleep(seconds)
            after, last = bench.cpu(node), processes.memory(*processes.tree(node.pid))
            results.add(variant, "connections", "sessions", bench.sessions())
        add_cpu_per_second(results, variant, before, after, seconds)
        if first is not None and last is not None:
            results.add(variant, "memory (PSS)", "MiB", last.pss)
            results.add(variant, "growth of memory", "MiB", last.pss - first.pss)


def add_cpu_per_second(results: Results, variant: str, before: Cpu, after: Cpu, seconds: float) -> None:
    """A figure for each kind of process."""
    for kind in ("coordinators", "workers", "postgres"):
        first, last = getattr(before, kind), getattr(after, kind)
        if None not in {first, last}:
            results.add(variant, f"CPU {kind}", "ms/s", (last - first) / seconds * 1000)
