"""How soon a single job starts on an idle node, beside the plainest LISTEN/NOTIFY client."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess

from bench import bare
from bench.harness import Bench, table_of
from bench.jobs.probe import LimitedProbeJob, ProbeJob
from bench.results import Results
from bench.scenarios.producer import add_percentiles, start_latencies

SHORTEST, LONGEST = 0.020, 0.120
"""Seconds between two inserts."""
WARM_UP_PROBES = 5
SECONDS_TO_STOP = 10
_spawn = multiprocessing.get_context("spawn")


def run(bench: Bench, results: Results) -> None:
    """Start of single jobs on an idle node: from the INSERT call to perform's first line."""
    for _ in bench.rounds("latency", 2):
        # The floor's client and the node are never up together: a NOTIFY wakes every listener of the database.
        with bare_client(bench):
            floor = start_latencies(bench, bare.TABLE, _pauses(bench.options.probes), "number")
        add_percentiles(results, "LISTEN/NOTIFY client", floor)
        with bench.node("probe"):
            for variant, job_class in (("no limit", ProbeJob), ("limit of 16", LimitedProbeJob)):
                table = table_of(job_class)
                start_latencies(bench, table, _pauses(WARM_UP_PROBES))
                add_percentiles(results, variant, start_latencies(bench, table, _pauses(bench.options.probes)), floor)


@contextmanager
def bare_client(bench: Bench) -> Iterator[SpawnProcess]:
    """The floor's client, listening, on an empty table."""
    bench.load(bare.TABLE, 0)
    bench.connection.execute(bare.ADD_NOTIFY)
    ready, stop = _spawn.Event(), _spawn.Event()
    client = _spawn.Process(target=bare.answer, args=(bench.url, bench.board_path, ready, stop), daemon=True)
    client.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the LISTEN/NOTIFY client did not start; its error is above")
        start_latencies(bench, bare.TABLE, _pauses(WARM_UP_PROBES), "number")
        yield client
    finally:
        stop.set()
        client.join(SECONDS_TO_STOP)
        client.kill()
        bench.connection.execute(bare.DROP_NOTIFY)


def _pauses(count: int) -> list[float]:
    return [random.uniform(SHORTEST, LONGEST) for _ in range(count)]
