"""CPU seconds per 1,000 jobs, from two readings."""

from __future__ import annotations

from bench.harness import Cpu
from bench.results import Results


def add_cpu(results: Results, variant: str, before: Cpu, after: Cpu, jobs: int) -> None:
    """A figure for each kind of process that there is."""
    for kind in ("coordinators", "workers", "postgres"):
        first, last = getattr(before, kind), getattr(after, kind)
        if last:
            results.add(variant, f"CPU {kind}", "ms/1,000 jobs", (last - first) / jobs * 1e6)
