"""One client that inserts single jobs at given times and knows when each of them started."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import psycopg
from psycopg import sql

from bench.harness import Bench
from bench.results import Results

SECONDS_TO_START = 30


def start_latencies(bench: Bench, table: str, pauses: Sequence[float], column: str = "place") -> list[float]:
    """Milliseconds from just before each INSERT, which commits by itself, to the job's first line.

    pauses: seconds between one insert and the next, on a schedule: a slow insert delays no other one's due time.
    """
    places = range(len(pauses))
    bench.board.clear()
    insert = sql.SQL("INSERT INTO {} ({}) VALUES (%s)").format(sql.Identifier(table), sql.Identifier(column))
    inserted = []
    with psycopg.connect(bench.url, autocommit=True, prepare_threshold=0) as connection:
        statement = insert.as_bytes(connection)
        due = time.monotonic() + 0.1  # a job before this one has ended by then
        for place, pause in zip(places, pauses, strict=True):
            time.sleep(max(0.0, due - time.monotonic()))
            inserted.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
            connection.execute(statement, [place])
            due += pause
    started = bench.board.wait(places, SECONDS_TO_START)
    return [(start - insert_at) / 1e6 for start, insert_at in zip(started, inserted, strict=True)]


def add_percentiles(results: Results, variant: str, latencies: list[float], floor: list[float] | None = None) -> None:
    """p50, p95 and p99 of one round."""
    for percent in (50, 95, 99):
        compared = percentile(floor, percent) if floor else None
        results.add(variant, f"p{percent}", "ms", percentile(latencies, percent), compared)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
