"""Twenty thousand jobs that succeed, fail, crash and hang on two nodes, and every single one of them accounted for.

Jobs append a line to a file of their process when they start and when they end: a line in one write, with the machine's
monotonic clock. The table says what should have happened, the files what did.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

SOURCE = """
import asyncio, ctypes, os, time
from datetime import timedelta
from cluster import ConstantBackoff, Job

FOLDER = {folder!r}
SOON = ConstantBackoff(timedelta(milliseconds=50))
LIBC = ctypes.PyDLL(None)  # calls that keep the interpreter's lock
files = {{}}

def record(job, what):
    pid = os.getpid()
    if pid not in files:
        files[pid] = os.open(f"{{FOLDER}}/{{pid}}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(files[pid], f"{{what}} {{type(job).__name__}} {{job.id}} {{job.attempt}} {{time.monotonic()}}\\n".encode())

class FastJob(Job):
    max_concurrency = None
    async def perform(self):
        record(self, "start")
        record(self, "end")

class SlowJob(Job):
    max_concurrency = 4
    async def perform(self):
        record(self, "start")
        await asyncio.sleep(0.05)
        record(self, "end")

class FlakyJob(Job):
    backoff = SOON
    async def perform(self):
        record(self, "start")
        record(self, "end")
        if self.attempt < 3:
            raise ValueError("not yet")

class DoomedJob(Job):
    max_concurrency = None
    max_attempts = 3
    backoff = SOON
    async def perform(self):
        record(self, "start")
        record(self, "end")
        raise ValueError("never")

class CrashingJob(Job):  # the odd ones always, the even ones on their first attempt
    backoff = SOON
    async def perform(self):
        record(self, "start")
        await asyncio.sleep(0.01)
        if self.id % 2 or self.attempt == 1:
            record(self, "crash")
            os._exit(3)
        record(self, "end")

class HangingJob(Job):  # the odd ones always, the even ones on their first attempt
    max_attempts = 2
    timeout = timedelta(milliseconds=300)
    backoff = SOON
    def perform(self):
        record(self, "start")
        if self.id % 2 or self.attempt == 1:
            record(self, "crash")
            LIBC.sleep(60)
        record(self, "end")
"""
JOBS = {"Fast": 17_990, "Slow": 300, "Flaky": 1_200, "Doomed": 500, "Crashing": 6, "Hanging": 4}
ROWS = " UNION ALL ".join(
    f"SELECT '{kind}Job' AS kind, id, status::text, attempts_count, crashes_count, locked_by, locked_at FROM {kind.lower()}_jobs"
    for kind in JOBS
)
Key = tuple[str, int]


@dataclass(frozen=True)
class Event:
    """What a job recorded. what: start, end or crash (its process is about to die)."""

    what: str
    attempt: int
    pid: int
    at: float


@dataclass(frozen=True)
class Row:
    status: str
    attempts: int
    crashes: int


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_one_of_20000_jobs_is_accounted_for(conn: psycopg.Connection, run_node: RunNode, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    source = SOURCE.format(folder=str(folder))
    nodes = [run_node(source, processes=2) for _ in range(2)]
    insert_all(conn)
    unfinished = (
        f"SELECT count(*) FROM ({ROWS}) r WHERE status NOT IN ('succeeded', 'failed', 'timed_out', 'cancelled')"
    )
    wait_for(conn, f"SELECT n = 0, n FROM ({unfinished}) u (n)", timeout=120)

    assert [node.stop() for node in nodes] == [0, 0]
    assert conn.execute(f"SELECT count(*) FROM ({ROWS}) r WHERE locked_at IS NOT NULL".encode()).fetchone() == (0,)
    assert conn.execute("SELECT array_agg(state) FROM cluster.nodes").fetchone() == (["stopped", "stopped"],)
    workers = conn.execute(f"SELECT kind, count(DISTINCT locked_by) FROM ({ROWS}) r GROUP BY 1".encode()).fetchall()
    assert {kind: count for kind, count in workers if kind in {"FastJob", "FlakyJob"}} == {"FastJob": 2, "FlakyJob": 2}

    rows = {
        (kind, job_id): Row(status, attempts, crashes)
        for kind, job_id, status, attempts, crashes, _, _ in conn.execute(ROWS.encode())
    }
    assert len(rows) == 20_000
    events = read_events(folder)
    assert events.keys() == rows.keys()
    faults = [f"{key} {row}: {fault}" for key, row in rows.items() if (fault := fault_of_row(key, row))]
    faults += faults_of_starts(rows, events)
    assert not faults, "\n".join(faults[:20])
    assert most_at_once(events, "SlowJob") == 4, "the limit, reached and never passed"


def insert_all(connection: psycopg.Connection) -> None:
    """In ten rounds, so that the kinds meet."""
    for part in range(10):
        for kind, count in JOBS.items():
            share = count * (part + 1) // 10 - count * part // 10
            table = f"{kind.lower()}_jobs"
            connection.execute(
                f"INSERT INTO {table} (queue) SELECT 'default' FROM generate_series(1, {share})".encode()
            )


def read_events(folder: Path) -> dict[Key, list[Event]]:
    """By job, in order of time."""
    found: dict[Key, list[Event]] = defaultdict(list)
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            what, kind, job_id, attempt, at = line.split()
            found[kind, int(job_id)].append(Event(what, int(attempt), int(file.name), float(at)))
    for seen in found.values():
        seen.sort(key=lambda event: event.at)
    return found


def fault_of_row(key: Key, row: Row) -> str | None:
    """What its row should say."""
    kind, job_id = key
    always = job_id % 2
    expected = {
        "FastJob": ("succeeded", {1}),
        "SlowJob": ("succeeded", {1}),
        "FlakyJob": ("succeeded", {3}),
        "DoomedJob": ("failed", {3}),
        # Of three crashes the first may have had neighbours: then nobody knew whose fault it was, and it cost no attempt.
        "CrashingJob": ("failed", {2, 3}) if always else ("succeeded", {2}),
        "HangingJob": ("timed_out" if always else "succeeded", {2}),
    }
    status, attempts = expected[kind]
    if row.status != status or row.attempts not in attempts:
        return f"should be {status} after {attempts} attempts"
    if kind == "CrashingJob" and always and row.crashes != 3:
        return "should have crashed 3 times"
    return None


def faults_of_starts(rows: dict[Key, Row], events: dict[Key, list[Event]]) -> list[str]:
    """Every attempt that the row counts was started; none twice, unless its process died under it or beside it."""
    died = {event.pid for seen in events.values() for event in seen if event.what == "crash"}
    faults = []
    for key, seen in events.items():
        starts = [event for event in seen if event.what == "start"]
        if {start.attempt for start in starts} != set(range(1, rows[key].attempts + 1)):
            faults.append(f"{key} {rows[key]}: started {starts}")
        for earlier, later in zip(starts, starts[1:], strict=False):
            if earlier.attempt >= later.attempt and (earlier.attempt > later.attempt or earlier.pid not in died):
                faults.append(f"{key} {rows[key]}: attempt {later.attempt} was started twice: {starts}")
    return faults


def most_at_once(events: dict[Key, list[Event]], kind: str) -> int:
    """The most jobs of a kind that ran at the same time. One without an end ran until its process died."""
    died_at: dict[int, float] = defaultdict(float)
    for seen in events.values():
        for event in seen:
            died_at[event.pid] = max(died_at[event.pid], event.at)
    changes = []
    for key, seen in events.items():
        if key[0] == kind:
            ends = {(event.attempt, event.pid): event.at for event in seen if event.what == "end"}
            starts = [event for event in seen if event.what == "start"]
            changes += [(start.at, 1) for start in starts]
            changes += [(ends.get((start.attempt, start.pid), died_at[start.pid]), -1) for start in starts]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most
