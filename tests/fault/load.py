"""The mixed load of the fault suite: its job types, the trail that their rows leave, and the producer that enqueues."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import ClassVar

import psycopg
from psycopg import sql

from tests.fault.journal import Job

TABLES = {
    "FastJob": "fast_jobs", "SlowJob": "slow_jobs", "StrictJob": "strict_jobs", "CpuJob": "cpu_jobs", "LongJob": "long_jobs",
    "TickJob": "tick_jobs",
}  # fmt: skip
LIMITS = {"SlowJob": 3, "StrictJob": 1}
HEARTBEAT = 1.0
NOTE = "as the new version writes it"

SOURCE = """
import asyncio, fcntl, os, time
from datetime import timedelta
from cluster import ConstantBackoff, Job

JOURNAL, LOCKS, OVER = {journal!r}, {locks!r}, {over!r}
NOTE = {note!r}
SOON = ConstantBackoff(timedelta(milliseconds=200))
journals = {{}}

def lock(name):
    '''A lock that the kernel frees when this process dies, at once. None: somebody has it.'''
    handle = os.open(f"{{LOCKS}}/{{name}}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle

class performing:
    def __init__(self, job, limit=None):
        assert getattr(job, "note", NOTE) == NOTE, job.note
        self.job, self.limit, self.held = job, limit, []

    def __enter__(self):
        name = type(self.job).__name__
        own = lock(f"{{name}}-{{self.job.id}}")
        self.held += [] if own is None else [own]
        slot = "-" if self.limit is None else self.take_slot(name)
        self.write("start", int(own is None), slot)

    def take_slot(self, name):
        for number in range(self.limit):
            place = lock(f"{{name}}.{{number}}")
            if place is not None:
                self.held.append(place)
                return number
        return -1

    def __exit__(self, kind, *_):
        self.write("end" if kind is None else "stopped", 0, "-")
        for handle in self.held:
            os.close(handle)

    def write(self, what, clash, slot):
        pid = os.getpid()
        if pid not in journals:
            journals[pid] = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        fields = what, type(self.job).__name__, self.job.id, self.job.attempt, pid, f"{{now:.6f}}", clash, slot
        os.write(journals[pid], (" ".join(map(str, fields)) + chr(10)).encode())

class FastJob(Job):
    max_concurrency = None
    max_attempts = max_crashes = 1000
    backoff = SOON
    async def perform(self):
        with performing(self):
            await asyncio.sleep(0.005)

class SlowJob(Job):
    max_concurrency = 3
    max_attempts = max_crashes = 1000
    backoff = SOON
    async def perform(self):
        with performing(self, 3):
            await asyncio.sleep(0.3)

class StrictJob(Job):
    max_concurrency = 1
    max_attempts = max_crashes = 1000
    backoff = SOON
    async def perform(self):
        with performing(self, 1):
            await asyncio.sleep(0.1)

class CpuJob(Job):
    max_concurrency = None
    max_attempts = max_crashes = 1000
    backoff = SOON
    def perform(self):
        with performing(self):
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                pass

class LongJob(Job):
    max_concurrency = None
    max_attempts = max_crashes = 1000
    backoff = SOON
    async def perform(self):
        with performing(self):
            until = time.monotonic() + {long}
            while time.monotonic() < until and not os.path.exists(OVER):
                await asyncio.sleep(0.05)

class TickJob(Job):
    max_concurrency = None
    max_attempts = max_crashes = 1000
    backoff = SOON
    async def perform(self):
        with performing(self):
            await asyncio.sleep(0.005)
"""

SCHEDULES = """
INSERT INTO cluster.schedules (name, job_table, every, misfire, overlap, on_error)
SELECT 'tick ' || n, 'tick_jobs', n * interval '1 second', 'all', 'allow', 'keep' FROM generate_series(1, 3) AS n
"""
"""TickJobs are inserted by these alone."""

TRAIL = """
CREATE TABLE trail (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(), job_type text, id bigint,
    old text, new text, attempts_before integer, attempts integer, locked_by uuid);
CREATE FUNCTION leave_trail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO trail (job_type, id, old, new, attempts_before, attempts, locked_by)
    VALUES (TG_ARGV[0], NEW.id, OLD.status, NEW.status, OLD.attempts_count, NEW.attempts_count, NEW.locked_by);
    RETURN NULL;
END $$;
"""
TRAIL_TRIGGER = """
CREATE TRIGGER leave_trail AFTER UPDATE ON {table} FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
EXECUTE FUNCTION leave_trail({job_type})
"""


def source(journal: Path, locks: Path, over: Path, long: float) -> str:
    """The package `jobs` of every node. long: seconds of a LongJob, which ends early once there is a file over."""
    return SOURCE.format(journal=str(journal), locks=str(locks), over=str(over), long=long, note=NOTE)


def next_version(text: str) -> str:
    """The package `jobs` after a change: two classes have one more column each, and rows of old nodes and new have it too."""
    for name in ("FastJob", "SlowJob"):
        text = text.replace(f"class {name}(Job):\n", f'class {name}(Job):\n    note: str = "{NOTE}"\n')
    return text


def leave_trails(connection: psycopg.Connection) -> None:
    """From now on every change of a job's state is on record, in the transaction that makes it; and schedules begin."""
    connection.execute(TRAIL)
    connection.execute(SCHEDULES)
    for name, table in TABLES.items():
        connection.execute(sql.SQL(TRAIL_TRIGGER).format(table=sql.Identifier(table), job_type=sql.Literal(name)))


class Producer:
    """Enqueues in a thread until stopped: one transaction each turn. Whatever happens to Postgres, it goes on."""

    TURN = 0.05
    EVERY: ClassVar[dict[str, int]] = {"FastJob": 1, "SlowJob": 8, "StrictJob": 8, "CpuJob": 20, "LongJob": 120}
    """A job of the type in every so many turns."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[Job] = set()
        """Jobs whose INSERT was answered by a COMMIT: these must not be lost."""
        self.left_out: set[str] = set()
        """Types for which nothing is enqueued, since their tables are gone."""
        self.errors = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No job comes any more."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the producer hangs"

    def _run(self) -> None:
        turn = 0
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._url, connect_timeout=2, autocommit=True) as connection:
                    while not self._stop.wait(self.TURN):
                        self._enqueue(connection, turn)
                        turn += 1
            except psycopg.Error:
                self.errors += 1
                time.sleep(0.1)

    def _enqueue(self, connection: psycopg.Connection, turn: int) -> None:
        """A table that somebody has locked, or dropped, costs this turn's row in it."""
        wanted = [name for name, every in self.EVERY.items() if turn % every == 0 and name not in self.left_out]
        connection.execute("SET lock_timeout = '100ms'")
        for name in wanted:
            try:
                query = sql.SQL("INSERT INTO {} DEFAULT VALUES RETURNING id").format(sql.Identifier(TABLES[name]))
                row = connection.execute(query).fetchone()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
                continue
            assert row is not None
            self.acknowledged.add((name, row[0]))
