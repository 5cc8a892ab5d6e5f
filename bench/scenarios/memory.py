"""Memory of a node with 4 workers: idle, and while it performs a million jobs."""

from __future__ import annotations

import time

from bench import processes
from bench.harness import Bench, Node, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results

WORKERS = 4
JOBS = 1_000_000
CHUNKS = 10
SECONDS_TO_SETTLE = 2.0
_Memory = dict[str, processes.Memory]


def run(bench: Bench, results: Results) -> None:
    """Memory of an idle node with 4 workers, and its growth over 1,000,000 jobs."""
    jobs = int(results.parameters.setdefault("jobs", bench.jobs(JOBS)))
    table = table_of(NoopJob)
    for _ in bench.rounds("memory", 1):
        bench.load(table, 0)
        with bench.node("noop", worker_processes=bench.options.processes or WORKERS) as node:
            course = [(0, _memory(node))]
            for chunk in range(1, CHUNKS + 1):
                bench.load(table, jobs // CHUNKS)
                bench.wait_until_finished(table)
                course.append((chunk * (jobs // CHUNKS), _memory(node)))
        for name in course[0][1]:
            _add(results, name, [(done, memory[name]) for done, memory in course])


def _memory(node: Node) -> _Memory:
    """Empty where there is no /proc. The forkserver counts among the workers."""
    time.sleep(SECONDS_TO_SETTLE)
    whole = processes.tree(node.pid)
    pids = {"node": whole, "coordinator": [node.pid], "workers": [pid for pid in whole if pid != node.pid]}
    found = {name: processes.memory(*members) for name, members in pids.items()}
    return {name: memory for name, memory in found.items() if memory is not None}


def _add(results: Results, variant: str, course: list[tuple[int, processes.Memory]]) -> None:
    """Growth begins after the first chunk: until then code and caches come in that are needed once."""
    for measure in ("pss", "private"):
        points = [(done, getattr(memory, measure)) for done, memory in course]
        shown = "PSS" if measure == "pss" else measure
        results.add(variant, f"{shown}, idle", "MiB", points[0][1])
        results.add(variant, f"{shown}, first tenth", "MiB", points[1][1])
        results.add(variant, f"{shown}, all jobs", "MiB", points[-1][1])
        results.add_points(variant, shown, "MiB", "jobs", points)
    first, last = course[1][1], course[-1][1]
    results.add(variant, "growth, private", "MiB", last.private - first.private)
