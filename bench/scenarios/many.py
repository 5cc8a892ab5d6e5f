"""Many small nodes on one Postgres: what they get done together, how much they wait for each other, what they cost at rest."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench.harness import Bench, table_of
from bench.jobs.limited import LimitedJob
from bench.jobs.noop import NoopJob
from bench.results import Results
from bench.scenarios import drain, floor
from bench.scenarios.idle import SECONDS_TO_SETTLE, add_cpu_per_second
from bench.scenarios.limited import SHARE

NODES = 16
IDLE_NODES = 8
SECONDS = 20.0


def run(bench: Bench, results: Results) -> None:
    """The drain with 16 nodes of one worker process, and what 8 idle ones cost Postgres."""
    seconds = results.parameters["seconds"] = bench.seconds(SECONDS)
    for _ in bench.rounds("many", 1):
        rate = floor.measure(bench, results)
        for limit, module, job_class, jobs in (
            ("no limit", "noop", NoopJob, bench.jobs()),
            ("limit of 16", "limited", LimitedJob, max(1, bench.jobs() // SHARE)),
        ):
            variant = f"{NODES} nodes, {limit}"
            drain.measure(
                bench, results, variant, table_of(job_class), module, rate, NODES, jobs, worker_processes=1
            )  # fmt: skip
        _idle(bench, results, seconds)


def _idle(bench: Bench, results: Results, seconds: float) -> None:
    """CPU in milliseconds a second: 10 are one percent of a core."""
    bench.load(table_of(NoopJob), 0)
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(bench.node("noop", number, worker_processes=1)) for number in range(1, IDLE_NODES + 1)
        ]
        time.sleep(min(SECONDS_TO_SETTLE, seconds))
        before = bench.cpu(*nodes)
        time.sleep(seconds)
        add_cpu_per_second(results, f"{IDLE_NODES} idle nodes", before, bench.cpu(*nodes), seconds)
