"""Claims and throughput in a table that has many more rows than those to perform."""

from __future__ import annotations

import time
from typing import LiteralString

from psycopg import sql

from bench.harness import Bench, table_of
from bench.jobs.counted import CountedJob
from bench.results import Results

FRESH = 20_000
ROWS = 1_000_000
SECONDS_TO_DRAIN = 300
EMPTY = "empty table"
# Rows of each kind have the number 0. What waits is behind the fresh rows, what is scheduled would be before them.
KINDS: dict[str, LiteralString] = {
    "scheduled, not due": "(number, status, priority, run_at) SELECT 0, 'scheduled', 1, now() + interval '1 day'",
    "finished": "(number, status, attempts_count, started_at, finished_at) SELECT 0, 'succeeded', 1, now(), now()",
    "waiting": "(number, priority) SELECT 0, 90",
}


def run(bench: Bench, results: Results) -> None:
    """20,000 fresh jobs beside 1,000,000 rows that are scheduled, finished or waiting."""
    rows = results.parameters["rows"] = bench.rows_or(ROWS)
    for _ in bench.rounds("large", 1):
        rate, claim = _measure(bench, None)
        _add(results, EMPTY, rate, claim)
        for kind, columns in KINDS.items():
            _add(results, f"{rows:,} {kind}", *_measure(bench, columns), floor=(rate, claim))


def _add(
    results: Results, variant: str, rate: float, claim: float | None,
    floor: tuple[float | None, float | None] = (None, None),
) -> None:  # fmt: skip
    """floor: the same in the empty table."""
    results.add(variant, "drained", "jobs/s", rate, floor[0])
    results.add(variant, "claim", "ms", claim, floor[1])


def _measure(bench: Bench, columns: LiteralString | None) -> tuple[float, float | None]:
    """Fresh jobs per second and milliseconds of a claim. columns: of the rows that are there before."""
    table, fresh = table_of(CountedJob), bench.jobs(FRESH)
    name = sql.Identifier(table)
    with bench.node("counted") as node:
        bench.warm_up(table)
        bench.pause(table, paused=True)
        bench.load(table, 0)
        if columns is not None:
            _fill(bench, name, columns)
        bench.connection.execute(sql.SQL("INSERT INTO {} (number) SELECT generate_series(1, %s)").format(name), [fresh])
        bench.connection.execute(sql.SQL("VACUUM ANALYZE {}").format(name))
        bench.board.clear()
        before = node.claims()
        bench.pause(table, paused=False)
        _wait(bench, fresh)
        claim = node.claims().mean_since(before)
        bench.pause(table, paused=True)
        bench.wait_until_finished(table, where="number > 0")
        rate = bench.jobs_per_second(table, where="number > 0")
    bench.load(table, 0)
    bench.pause(table, paused=False)
    return rate, claim


def _fill(bench: Bench, table: sql.Identifier, columns: LiteralString) -> None:
    """Past the triggers, which would refuse rows that have finished."""
    bench.connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(table))
    insert = sql.SQL("INSERT INTO {} " + columns + " FROM generate_series(1, %s)").format(table)
    bench.connection.execute(insert, [bench.rows_or(ROWS)])
    bench.connection.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(table))


def _wait(bench: Bench, count: int) -> None:
    """Asks the board, not the table, which may be large."""
    deadline = time.monotonic() + SECONDS_TO_DRAIN
    while bench.board.counted() < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {bench.board.counted()} of {count} jobs were performed in {SECONDS_TO_DRAIN} s")
        time.sleep(0.01)
