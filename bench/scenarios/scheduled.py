"""How exactly a job with a `run_at` starts on an idle node."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta

from psycopg import sql

from bench.harness import Bench, table_of
from bench.jobs.probe import ProbeJob
from bench.results import Results
from bench.scenarios.producer import SECONDS_TO_START, add_percentiles

SOONEST, LATEST = 1.0, 3.0
"""Seconds from the insert to run_at."""
APART = 0.02
"""Seconds between two inserts."""


def run(bench: Bench, results: Results) -> None:
    """Start of jobs that are due 1 to 3 s after their INSERT: start - run_at."""
    for _ in bench.rounds("scheduled", 2):
        with bench.node("probe"):
            add_percentiles(results, "run_at in 1-3 s", _latenesses(bench))


def _latenesses(bench: Bench) -> list[float]:
    """Milliseconds from run_at to the job's first line. Server and benchmark have to share the clock."""
    bench.board.clear()
    statement = sql.SQL("INSERT INTO {} (place, run_at) VALUES (%s, %s)").format(sql.Identifier(table_of(ProbeJob)))
    due = []
    for place in range(bench.options.probes):
        ahead = random.uniform(SOONEST, LATEST)
        due.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC) + round(ahead * 1e9))
        bench.connection.execute(statement, [place, datetime.now(UTC) + timedelta(seconds=ahead)])
        time.sleep(APART)
    started = bench.board.wait(range(len(due)), SECONDS_TO_START)
    return [(start - moment) / 1e6 for start, moment in zip(started, due, strict=True)]
