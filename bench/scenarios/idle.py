"""What a node costs that has nothing to do."""

from __future__ import annotations

import time

from bench import processes
from bench.harness import Bench
from bench.results import Results

WORKERS = 4
SECONDS_TO_SETTLE = 5.0


def run(bench: Bench, results: Results) -> None:
    """CPU and memory of a node with 4 workers, and of Postgres, without any job."""
    variant = f"{bench.options.processes or WORKERS} workers"
    seconds = bench.options.seconds
    for _ in bench.rounds("idle", 1):
        with bench.node("noop", worker_processes=bench.options.processes or WORKERS) as node:
            time.sleep(min(SECONDS_TO_SETTLE, seconds))
            before, first = bench.cpu(node), processes.memory(node.pid)
            time.sleep(seconds)
            after, last = bench.cpu(node), processes.memory(node.pid)
    for kind in ("coordinators", "workers", "postgres"):
        used = getattr(after, kind), getattr(before, kind)
        if None not in used:
            results.add(variant, f"CPU {kind}", "ms/s", (used[0] - used[1]) / seconds * 1000)
    if first is not None and last is not None:
        results.add(variant, "memory (PSS)", "MiB", last)
        results.add(variant, "growth of memory", "MiB", last - first)
