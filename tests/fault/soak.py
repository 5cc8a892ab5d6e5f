"""The long run: twelve job types under a mixed load, and every other minute something else is wrong with two of them.

The minutes in between show what the other ten do without it, in the same run on the same machine.
"""

from __future__ import annotations

import math
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psycopg

from tests.fault.obstacles import OBSTACLES, Obstacle
from tests.fault.obstructed import LISTED, ROLE, ObstacleStage, grant
from tests.support.nodes import wait_until
from tests.support.postgres import make_run_folder

NODES = 2
MINUTE, GAP, WARM_UP = 60.0, 5.0, 20.0
"""Seconds of a window, between two, and before the first."""
ALLOWED = 0.10
"""By how much the other types may differ, as a whole."""
BACKLOG = 2000
"""Jobs of the one type that always has some waiting."""
SETTLE = 120.0
"""Seconds in which all jobs must be at their end after the load has ended."""

SOURCE = """
import asyncio, time
from datetime import timedelta
from cluster import ConstantBackoff, Job

class EmailJob(Job):
    max_concurrency = None
    SECONDS = 0.005
    payload: str = ""
    async def perform(self):
        await asyncio.sleep(self.SECONDS)

class ImportJob(EmailJob):
    retention = timedelta(seconds=20)
class ReportJob(EmailJob):
    max_concurrency = 3
    SECONDS = 0.1

class PushJob(EmailJob):
    priority = 10
class WebhookJob(EmailJob):
    SECONDS = 0.1
class InvoiceJob(EmailJob):
    max_concurrency = 1
class SyncJob(EmailJob):
    max_concurrency = 4
    SECONDS = 0.05
class TenantJob(EmailJob):
    concurrency_key = "payload"
    max_concurrency = 2
class LaterJob(EmailJob): ...
class RetryJob(EmailJob):
    backoff = ConstantBackoff(timedelta(milliseconds=200))
    async def perform(self):
        if self.attempt == 1:
            raise ValueError("once more")
class ThumbnailJob(EmailJob):
    isolation = "thread"
    def perform(self):
        until = time.thread_time() + 0.005
        while time.thread_time() < until:
            pass
class BulkJob(EmailJob):
    priority = 90
    max_concurrency = 8
    SECONDS = 0.02
    retention = timedelta(minutes=3)
"""


class Type(NamedTuple):
    """rate: jobs a second; columns, values: of an INSERT, n counts the jobs of a turn."""

    rate: int
    columns: str = "payload"
    values: str = "''"


VICTIMS = {"import_jobs": Type(10), "report_jobs": Type(4)}
OTHERS = {
    "email_jobs": Type(20), "push_jobs": Type(20), "webhook_jobs": Type(10), "invoice_jobs": Type(5), "sync_jobs": Type(10),
    "tenant_jobs": Type(10, values="'tenant ' || n % 3"), "later_jobs": Type(10, "run_at", "now() + interval '1 second'"),
    "retry_jobs": Type(5), "thumbnail_jobs": Type(10), "bulk_jobs": Type(0),
}  # fmt: skip
OF_ITS_OWN = {
    "large_rows": Obstacle(
        "eight rows of 24 MB, and one of 200",
        """
            INSERT INTO {table} (payload) SELECT repeat('x', 24000000) FROM generate_series(1, 8);
            INSERT INTO {table} (payload) VALUES (repeat('x', 200000000))
        """,
        "SELECT",
        fails=True,
    ),
    "many_queues": Obstacle(
        "a job in each of 3,000 queues",
        "INSERT INTO {table} (queue) SELECT 'tenant ' || n FROM generate_series(1, 3000) AS n",
        "SELECT",
    ),
    "same_id": Obstacle(
        "running rows deleted, and new ones with their ids",
        "WITH gone AS (DELETE FROM {table} WHERE status = 'running' RETURNING id)"
        " INSERT INTO {table} (id) OVERRIDING SYSTEM VALUE SELECT id FROM gone",
        "SELECT",
    ),
    "renamed": Obstacle(
        "the tables have another name for a while",
        "ALTER TABLE {table} RENAME TO {table}_away",
        "ALTER TABLE {table}_away RENAME TO {table}",
        reason="table_missing",
    ),
    "hostile_rings": Obstacle(
        "a thousand notifications that mean nothing",
        "SELECT pg_notify(channel, repeat('9', 5000 + n)) FROM generate_series(1, 500) AS n,"
        " unnest(ARRAY['cluster_doorbell', 'cluster_cancel']) AS channel",
        "SELECT",
    ),
}
ALL = {name: obstacle for name, obstacle in (OBSTACLES | OF_ITS_OWN).items() if name != "refuse_releases"}
"""In a run without a node that ends, nothing is released."""

MEASURE = """
SELECT count(*), percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - run_at))
FROM {table} WHERE status = 'succeeded' AND finished_at >= to_timestamp(%s) AND finished_at < to_timestamp(%s)
"""
UNFINISHED = "SELECT count(*) FROM {table} WHERE status NOT IN ('succeeded', 'failed', 'timed_out', 'cancelled')"


class SoakStage(ObstacleStage):
    """Two nodes with jobs of their own, as a role of their own."""

    def __init__(self, folder: Path, bin_dir: Path | None) -> None:
        super().__init__(folder, bin_dir, NODES)
        self.source = SOURCE

    def watch(self, connection: psycopg.Connection) -> None:
        grant(connection, *VICTIMS, *OTHERS)


class Load:
    """Enqueues in a thread until stopped, ten turns a second. A table that cannot be had costs its rows of that turn."""

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self._connect = connect
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No job comes any more."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        owed = dict.fromkeys(VICTIMS | OTHERS, 0.0)
        with self._connect() as connection:
            while not self._stop.wait(0.1):
                for table, (rate, columns, values) in (VICTIMS | OTHERS).items():
                    owed[table] += rate / 10
                    rows = int(owed[table]) if rate else self._lacking(connection, table)
                    owed[table] -= rows if rate else 0
                    if rows:
                        insert = f"INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series(1, {rows}) AS n"
                        self._do(connection, insert)

    def _lacking(self, connection: psycopg.Connection, table: str) -> int:
        row = connection.execute(f"SELECT count(*) FROM {table} WHERE status = 'not_started'".encode()).fetchone()
        return BACKLOG if row is not None and row[0] < BACKLOG / 2 else 0

    def _do(self, connection: psycopg.Connection, statement: str) -> None:
        try:
            connection.execute(statement.encode())
        except (psycopg.errors.UndefinedTable, psycopg.errors.UniqueViolation):
            pass  # renamed; or an id that was given by hand


class Figures(NamedTuple):
    """Of one type in one minute. median, slow: seconds from run_at to finished_at, of half and of 95 % of the jobs."""

    jobs: int
    median: float
    slow: float


@dataclass
class Window:
    """A minute. obstacle: empty: nothing is wrong. told: what nodes said was wrong, at its end."""

    obstacle: str
    figures: dict[str, Figures]
    told: list[str]


@dataclass
class Soak:
    """What came of it. problems: what must not be."""

    windows: list[Window]
    problems: list[str]

    def ratios(self, of: Callable[[Figures], float]) -> dict[str, float]:
        """For each of the other types: the median of the minutes with an obstacle, in terms of that of those without."""
        return {
            table: statistics.median(of(window.figures[table]) for window in self.windows if window.obstacle)
            / statistics.median(of(window.figures[table]) for window in self.windows if not window.obstacle)
            for table in OTHERS
        }

    @property
    def broken(self) -> bool:
        means = [_mean(self.ratios(of)) for of in MEASURES.values()]
        return bool(self.problems) or any(abs(mean - 1) > ALLOWED for mean in means)

    def __str__(self) -> str:
        lines = [f"{len(self.windows)} minutes; with an obstacle, in terms of those without:"]
        for name, of in MEASURES.items():
            ratios = self.ratios(of)
            worst = max(ratios, key=lambda table: abs(ratios[table] - 1))
            lines.append(f"  {name:<26} {_mean(ratios):.3f}   most different: {worst} {ratios[worst]:.3f}")
        return "\n".join([*lines, *(f"  broken: {problem}" for problem in self.problems)])


MEASURES: dict[str, Callable[[Figures], float]] = {
    "jobs a minute": lambda figures: figures.jobs,
    "median time to the end": lambda figures: figures.median,
    "95 % are quicker than": lambda figures: figures.slow,
}


def _mean(ratios: dict[str, float]) -> float:
    """Of all types, each with the same weight."""
    return math.exp(statistics.fmean(map(math.log, ratios.values())))


def soak(minutes: int, bin_dir: Path | None, show: Callable[[str], None]) -> Soak:
    """Runs for so long, and tells of each minute. AssertionError: it does not come to its end."""
    folder = make_run_folder()
    try:
        stage = SoakStage(folder, bin_dir)
        with stage.open(), stage.connect() as connection:
            load = Load(stage.connect)
            load.start()
            stage.wait(WARM_UP)
            windows = []
            for name in _minutes(minutes):
                window = _minute(stage, connection, name)
                windows.append(window)
                show(_line(window))
                stage.wait(GAP)
            load.stop()
            problems = _end(stage, connection)
            return Soak(windows, problems)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _minutes(number: int) -> Iterator[str]:
    """What is wrong in each: nothing in every other."""
    names = list(ALL)
    return ("" if minute % 2 == 0 else names[minute // 2 % len(names)] for minute in range(number))


def _minute(stage: SoakStage, connection: psycopg.Connection, name: str) -> Window:
    since = time.time()
    if name:
        with ALL[name].stand(connection, *VICTIMS, role=ROLE):
            stage.wait(MINUTE)
            told = _told(connection)
    else:
        stage.wait(MINUTE)
        told = _told(connection)
    until = time.time()
    figures = {table: _measure(connection, table, since, until) for table in OTHERS}
    return Window(name, figures, told)


def _measure(connection: psycopg.Connection, table: str, since: float, until: float) -> Figures:
    row = connection.execute(MEASURE.replace("{table}", table).encode(), [since, until]).fetchone()
    assert row is not None
    assert row[0], f"{table}: nothing came to its end in a minute"
    return Figures(round(row[0] * MINUTE / (until - since)), *map(float, row[1]))


def _told(connection: psycopg.Connection) -> list[str]:
    row = connection.execute(LISTED).fetchone()
    return [] if row is None or row[0] is None else sorted(row[0])


def _end(stage: SoakStage, connection: psycopg.Connection) -> list[str]:
    """What is wrong once all should be over."""
    tables = [*VICTIMS, *OTHERS]
    connection.execute("DELETE FROM bulk_jobs WHERE status = 'not_started'")

    def unfinished() -> str:
        counts = {table: _number(connection, UNFINISHED, table) for table in tables}
        return ", ".join(f"{count} of {table}" for table, count in counts.items() if count)

    wait_until(lambda: not unfinished(), "every job is at its end", SETTLE, unfinished)
    wait_until(lambda: not _told(connection), "nothing is wrong any more", SETTLE, lambda: str(_told(connection)))
    failed = {
        table: _number(connection, "SELECT count(*) FROM {table} WHERE status <> 'succeeded'", table)
        for table in OTHERS
    }
    problems = [f"{count} jobs of {table} did not succeed" for table, count in failed.items() if count]
    problems += [
        f"node {node.number} ended with {node.exit_code}" for node in stage.nodes if node.exit_code is not None
    ]
    return problems + stage.stop_nodes()


def _number(connection: psycopg.Connection, query: str, table: str) -> int:
    row = connection.execute(query.replace("{table}", table).encode()).fetchone()
    assert row is not None
    return int(row[0])


def _line(window: Window) -> str:
    figures = list(window.figures.values())
    median, slow = (statistics.median(values) * 1000 for values in zip(*(each[1:] for each in figures), strict=True))
    return (
        f"{ALL[window.obstacle].words if window.obstacle else '-':<63} {sum(each.jobs for each in figures):>7,} jobs "
        f"{median:>5.0f} ms {slow:>5.0f} ms  {', '.join(window.told) or '-'}"
    )
