"""Start latency and CPU at a steady rate, beside the plainest LISTEN/NOTIFY client."""

from __future__ import annotations

from bench import bare
from bench.harness import Bench, table_of
from bench.jobs.probe import ProbeJob
from bench.results import Results
from bench.scenarios.cpu import add_cpu
from bench.scenarios.latency import bare_client
from bench.scenarios.producer import add_percentiles, start_latencies

RATE = 500
"""Inserts a second by one client."""
JOBS_PER_PROBE = 15
"""The scenario takes that many times --probes jobs."""


def run(bench: Bench, results: Results) -> None:
    """Start latency and CPU at 500 jobs/s."""
    count = bench.options.probes * JOBS_PER_PROBE
    pauses = [1 / RATE] * count
    for _ in bench.rounds("steady"):
        with bare_client(bench) as client:
            before = bench.cpu(client)
            floor = start_latencies(bench, bare.TABLE, pauses, "number")
            floor_cpu = add_cpu(results, "LISTEN/NOTIFY client", before, bench.cpu(client), count)
        add_percentiles(results, "LISTEN/NOTIFY client", floor)
        with bench.node("probe") as node:
            start_latencies(bench, table_of(ProbeJob), pauses[: count // 10])
            before = bench.cpu(node)
            latencies = start_latencies(bench, table_of(ProbeJob), pauses)
            add_cpu(results, "one node", before, bench.cpu(node), count, floor_cpu)
        add_percentiles(results, "one node", latencies, floor)
