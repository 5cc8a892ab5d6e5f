"""What a limit costs when jobs are long: 40 at a time because of the limit, beside 40 because there are no more slots."""

from __future__ import annotations

from contextlib import ExitStack

from psycopg import sql

from bench.harness import Bench, table_of
from bench.jobs.long import LongJob
from bench.jobs.long_limited import LimitedLongJob
from bench.results import Results

AT_ONCE = 40
PAUSE = 5.0
"""Seconds that a job takes."""
SECONDS = 60.0
FEWEST_WAVES = 4
"""The first two and the last are not measured: then places are being filled, or left empty."""


def run(bench: Bench, results: Results) -> None:
    """Jobs of 5 s with a limit of 40, beside 40 slots without a limit."""
    seconds = results.parameters["seconds"] = bench.seconds(SECONDS)
    pause = results.parameters["pause"] = min(PAUSE, seconds / FEWEST_WAVES)
    waves = round(seconds / pause) + FEWEST_WAVES - 1
    for _ in bench.rounds("long", 1):
        # Two processes with 20 slots each are 40 places; two nodes with 32 each leave it to the limit.
        rate = _measure(bench, "long", table_of(LongJob), pause, waves, nodes=1, concurrency=AT_ONCE // 2)
        _add(results, f"{AT_ONCE} slots, no limit", rate, pause, None)
        limited = _measure(bench, "long_limited", table_of(LimitedLongJob), pause, waves, nodes=2, concurrency=16)
        _add(results, f"64 slots, limit of {AT_ONCE}", limited, pause, rate)


def _add(results: Results, variant: str, rate: float, pause: float, floor: float | None) -> None:
    """gap: the mean time from the end of a job to the start of the next one in its place."""
    results.add(variant, "performed", "jobs/s", rate, floor)
    results.add(variant, "gap between two jobs", "ms", (AT_ONCE / rate - pause) * 1000)


def _measure(
    bench: Bench, module: str, table: str, pause: float, waves: int, *, nodes: int, concurrency: int
) -> float:  # fmt: skip
    """Jobs per second of all waves but the first two and the last."""
    bench.load(table, 0, "pause")
    name = sql.Identifier(table)
    with ExitStack() as stack:
        for number in range(1, nodes + 1):
            stack.enter_context(bench.node(module, number, worker_processes=2, concurrency=concurrency))
        bench.connection.execute(
            sql.SQL("INSERT INTO {} (pause) SELECT %s FROM generate_series(1, %s)").format(name),
            [pause, waves * AT_ONCE],
        )
        bench.wait_until_finished(table, timeout=2 * waves * pause + 60)
    query = sql.SQL("SELECT extract(epoch FROM finished_at)::float8 FROM {} ORDER BY finished_at").format(name)
    ends = [end for (end,) in bench.connection.execute(query)]
    # Whole waves: whichever phase the places are in, each has ended once more.
    first, last = 2 * AT_ONCE - 1, (waves - 1) * AT_ONCE - 1
    return (last - first) / float(ends[last] - ends[first])
