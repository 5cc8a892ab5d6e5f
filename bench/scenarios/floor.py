"""The ceiling that Postgres sets: claim and finish at batch 500 over two connections, in two processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

from bench import bare
from bench.harness import Bench, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results
from bench.scenarios.cpu import add_cpu

CONNECTIONS = 2
_spawn = multiprocessing.get_context("spawn")


def run(bench: Bench, results: Results) -> None:
    """Bare SQL that claims and finishes, and the product's own statements in the same loop."""
    for _ in bench.rounds("floor"):
        floor = measure(bench, results)
        results.add("product's statements", "drained", "jobs/s", _with_product_statements(bench, results), floor)


def measure(bench: Bench, results: Results) -> float:
    """One round of the bare loop, in jobs/s; no node may be up."""
    bench.load(bare.TABLE, bench.jobs())
    before = bench.cpu()
    _run_clients(bare.drain, bench.url)
    add_cpu(results, "bare SQL", before, bench.cpu(), bench.jobs())
    rate = bench.jobs_per_second(bare.TABLE)
    results.add("bare SQL", "drained", "jobs/s", rate)
    return rate


def _with_product_statements(bench: Bench, results: Results) -> float:
    table, node = table_of(NoopJob), uuid4()
    bench.connection.execute(
        "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)"
        " VALUES (%s, 'bench', 0, '0', '{*}', '{}', now() + %s, 0)",
        [node, timedelta(hours=1)],
    )
    bench.load(table, bench.jobs())
    before = bench.cpu()
    _run_clients(bare.drain_with_product_statements, bench.url, table, node)
    add_cpu(results, "product's statements", before, bench.cpu(), bench.jobs())
    bench.connection.execute("DELETE FROM cluster.nodes WHERE id = %s", [node])
    return bench.jobs_per_second(table)


def _run_clients(target: Callable[..., None], url: str, *arguments: Any) -> None:
    gate = _spawn.Barrier(CONNECTIONS)
    clients = [_spawn.Process(target=target, args=(url, gate, *arguments)) for _ in range(CONNECTIONS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if any(client.exitcode for client in clients):
        raise RuntimeError("a client of the floor failed; its error is above")
