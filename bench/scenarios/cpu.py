"""CPU seconds per 1,000 jobs, from two readings."""

from __future__ import annotations

from bench.harness import Cpu
from bench.results import Results


def add_cpu(results: Results, variant: str, before: Cpu, after: Cpu, jobs: int, floor: float | None = None) -> float:
    """A figure for each kind of process that there is, and their sum, which is returned. floor: that sum of the floor."""
    total = 0.0
    for kind in ("coordinators", "workers", "postgres"):
        first, last = getattr(before, kind), getattr(after, kind)
        if last:
            used = (last - first) / jobs * 1e6
            total += used
            results.add(variant, f"CPU {kind}", "ms/1,000 jobs", used)
    if total:
        results.add(variant, "CPU in all", "ms/1,000 jobs", total, floor)
    return total
