"""The long run of schedules: 200 fire each second on three nodes. One is killed every ten seconds, and Postgres restarted twice.

Nothing is sampled: at the end every time on the grid of every schedule is compared with what is stored about it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg

from cluster.errors import ExitCode
from tests.fault.harness import SETTLE, Stage
from tests.support.nodes import log_tails, wait_until
from tests.support.postgres import make_run_folder

NODES = 3
MINUTES = 10
BETWEEN_KILLS = 10.0
"""Seconds."""

SOURCE = """
from datetime import timedelta
from cluster import ConstantBackoff, Job

class TickJob(Job):
    max_concurrency = None
    max_attempts = max_crashes = 1000
    backoff = ConstantBackoff(timedelta(milliseconds=200))
    async def perform(self): ...
"""
SCHEDULES = """
INSERT INTO cluster.schedules (name, job_table, every, misfire, overlap, on_error)
SELECT 'all ' || n, 'tick_jobs'::regclass, interval '1 second', 'all', 'allow', 'keep' FROM generate_series(1, 100) AS n
UNION ALL SELECT 'one ' || n, 'tick_jobs', '1 second', 'one', 'allow', 'keep' FROM generate_series(1, 50) AS n
UNION ALL SELECT 'skip ' || n, 'tick_jobs', '1 second', 'one', 'skip', 'keep' FROM generate_series(1, 50) AS n
"""
"""Those that make up for everything, for the latest only, and for the latest if no earlier job is unfinished: the defaults."""

WANTED = """
CREATE TEMPORARY TABLE wanted AS
    SELECT name, misfire, overlap, generate_series(created_at + every, next_due_at - interval '1 millisecond', every) AS due_at
    FROM cluster.schedules;
CREATE TEMPORARY TABLE jobs AS
    SELECT schedule AS name, scheduled_for AS due_at, count(*) AS number, min(id) AS id, bool_and(status = 'succeeded') AS succeeded
    FROM tick_jobs GROUP BY 1, 2;
ANALYZE wanted, jobs;
"""
BROKEN: dict[str, LiteralString] = {
    "more than one job for an occurrence": "SELECT name, due_at FROM jobs WHERE number > 1",
    "a job that did not succeed": "SELECT name, due_at FROM jobs WHERE NOT succeeded",
    "a job of no occurrence": "SELECT name, due_at FROM jobs EXCEPT SELECT name, due_at FROM wanted",
    "an occurrence off the grid": "SELECT name, due_at FROM cluster.schedule_runs EXCEPT SELECT name, due_at FROM wanted",
    "an occurrence whose job is another, or none": """
        SELECT name, due_at FROM cluster.schedule_runs AS run FULL JOIN jobs USING (name, due_at)
        WHERE run.job_id IS DISTINCT FROM jobs.id AND run.outcome IS DISTINCT FROM 'skipped'""",
    "missed, though all are made up for": """
        SELECT name, due_at FROM wanted WHERE misfire = 'all'
        EXCEPT SELECT name, due_at FROM cluster.schedule_runs WHERE job_id IS NOT NULL""",
    "left out, though jobs may run at the same time": """
        SELECT name, due_at FROM cluster.schedule_runs JOIN wanted USING (name, due_at)
        WHERE overlap = 'allow' AND job_id IS NULL""",
    "missed, though the latest": """
        SELECT name, max(wanted.due_at) FROM wanted LEFT JOIN cluster.schedule_runs AS run USING (name, due_at)
        GROUP BY name HAVING max(wanted.due_at) IS DISTINCT FROM max(run.due_at)""",
    "other than counted as missed": """
        SELECT name, missed FROM cluster.schedules AS s WHERE missed <>
            (SELECT count(*) FROM wanted AS w WHERE w.name = s.name) - (SELECT count(*) FROM jobs AS j WHERE j.name = s.name)""",
}  # fmt: skip
"""Each finds nothing where the promise was kept."""


@dataclass
class Account:
    """What was seen. missed: occurrences without a job, where the rule allows it. lag: seconds from due to fired."""

    seconds: float
    kills: int
    restarts: int
    occurrences: int
    jobs: int
    missed: int
    lag: tuple[float, float]
    problems: list[str]

    @property
    def broken(self) -> bool:
        return bool(self.problems)

    def __str__(self) -> str:
        return (
            f"{self.seconds / 60:.1f} minutes, {self.kills} nodes killed, Postgres restarted {self.restarts} times: "
            f"{self.occurrences:,} occurrences, {self.jobs:,} jobs, {self.missed:,} missed as their rule says; "
            f"lag {self.lag[0] * 1000:.0f} ms (p50), {self.lag[1]:.2f} s (p99)\n"
            + "\n".join(self.problems or ["nothing is wrong"])
        )


class FiringStage(Stage):
    """Three nodes with one type of jobs that schedules alone insert."""

    PROCESSES = 1

    def __init__(self, folder: Path, bin_dir: Path | None) -> None:
        super().__init__(folder, bin_dir, NODES)
        self.source = SOURCE

    def watch(self, connection: psycopg.Connection) -> None:
        connection.execute(SCHEDULES)


def fire_for_long(minutes: float, bin_dir: Path | None, say: Callable[[str], None]) -> Account:
    """AssertionError: it did not come to its end."""
    folder = make_run_folder()
    try:
        stage = FiringStage(folder, bin_dir)
        with stage.open():
            begun = time.monotonic()
            kills, restarts = _torment(stage, minutes * 60, say)
            wait_until(stage.end_schedules, "no schedule comes any more", SETTLE)
            for node in stage.nodes:
                if node.exit_code is None:
                    node.wait_ready()  # before that, a SIGTERM ends it at once
            wait_until(stage.all_final, "every job is at its end", SETTLE)
            problems = stage.stop_nodes()
            with stage.connect() as connection:
                return _account(connection, time.monotonic() - begun, kills, restarts, problems)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _torment(stage: Stage, seconds: float, say: Callable[[str], None]) -> tuple[int, int]:
    """Kills a node every ten seconds, and restarts Postgres after a third of the time and after two: how often each."""
    begun = time.monotonic()
    kills = restarts = 0
    living = list(stage.nodes)
    while time.monotonic() - begun < seconds:
        stage.wait(max(0.0, begun + (kills + 1) * BETWEEN_KILLS - time.monotonic()))
        for node in [node for node in living if node.exit_code is not None]:
            assert node.exit_code == ExitCode.DATABASE_UNREACHABLE, f"node {node.number} has ended\n{log_tails()}"
            living.remove(node)  # it came while Postgres was away: its supervisor starts another
            living.append(stage.add_node())
        node = living.pop(0)
        node.kill_all()
        kills += 1
        if time.monotonic() - begun > (restarts + 1) * seconds / 3 and restarts < 2:
            stage.server.restart("immediate")
            restarts += 1
        living.append(stage.add_node())
        say(f"{time.monotonic() - begun:.0f} s: node {node.number} killed, Postgres restarted {restarts} times")
    return kills, restarts


def _account(connection: psycopg.Connection, seconds: float, kills: int, restarts: int, problems: list[str]) -> Account:
    connection.execute(WANTED)
    for what, query in BROKEN.items():
        found = connection.execute(query).fetchall()
        if found:
            problems.append(f"{len(found)} times {what}: {', '.join(f'{name} at {at}' for name, at in found[:5])}")
    row = connection.execute(
        "SELECT (SELECT count(*) FROM wanted), (SELECT sum(number)::bigint FROM jobs),"
        " (SELECT sum(missed)::bigint FROM cluster.schedules),"
        " (SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM fired_at - due_at)::float8)"
        " FROM cluster.schedule_runs)"
    ).fetchone()
    assert row is not None
    occurrences, jobs, missed, (half, slow) = row
    return Account(seconds, kills, restarts, occurrences, jobs, missed, (half, slow), problems)
