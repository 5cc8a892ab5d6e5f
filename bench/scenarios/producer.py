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
    """Inserts single jobs, and waits until all have started: milliseconds of each."""
    return latencies(bench, insert_jobs(bench, table, pauses, column))


def insert_jobs(
    bench: Bench, table: str, pauses: Sequence[float], column: str = "place", rows: int = 1
) -> list[int]:  # fmt: skip
    """When each job's INSERT was called, in nanoseconds of CLOCK_MONOTONIC. Each commits by itself, with so many rows.

    pauses: seconds between one insert and the next, on a schedule: a slow insert delays no other one's due time.
    """
    bench.board.clear()
    insert = sql.SQL(
        "INSERT INTO {} ({}) SELECT unnest(%s::integer[])" if rows > 1 else "INSERT INTO {} ({}) VALUES (%s)"
    )
    inserted = []
    with psycopg.connect(bench.url, autocommit=True, prepare_threshold=0) as connection:
        statement = insert.format(sql.Identifier(table), sql.Identifier(column)).as_bytes(connection)
        due = time.monotonic() + 0.1  # a job before this one has ended by then
        for place, pause in zip(range(0, rows * len(pauses), rows), pauses, strict=True):
            time.sleep(max(0.0, due - time.monotonic()))
            inserted += [time.clock_gettime_ns(time.CLOCK_MONOTONIC)] * rows
            connection.execute(statement, [list(range(place, place + rows)) if rows > 1 else place])
            due += pause
        time.sleep(max(0.0, due - time.monotonic()))  # the last one's share of the time
    return inserted


def latencies(bench: Bench, inserted: Sequence[int]) -> list[float]:
    """Milliseconds from just before each INSERT to the job's first line. Waits until all have started."""
    started = bench.board.wait(range(len(inserted)), SECONDS_TO_START)
    return [(start - insert_at) / 1e6 for start, insert_at in zip(started, inserted, strict=True)]


def add_percentiles(results: Results, variant: str, values: list[float], floor: list[float] | None = None) -> None:
    """p50, p95 and p99 of one round's latencies."""
    for percent in (50, 95, 99):
        compared = percentile(floor, percent) if floor else None
        results.add(variant, f"p{percent}", "ms", percentile(values, percent), compared)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
