"""What all scenarios share: a server with a database of its own, nodes as subprocesses, rows to work on, rounds.

Owns the server, the temp folder and the node processes; all of them are gone when `open_bench` ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from rich.console import Console

from bench import bare, processes
from bench.board import VARIABLE, Board
from bench.jobs.counted import CountedJob
from bench.jobs.counted_limited import LimitedCountedJob
from bench.jobs.idle_types import IDLE_CLASSES
from bench.jobs.limited import LimitedJob
from bench.jobs.long import LongJob
from bench.jobs.long_limited import LimitedLongJob
from bench.jobs.noop import NoopJob
from bench.jobs.probe import LimitedProbeJob, ProbeJob
from bench.jobs.tick import TickJob
from bench.results import REPOSITORY
from cluster.embedded import EmbeddedPostgres, free_port, wheel_bin_dir
from cluster.job import Job, definition
from cluster.migration import migrate_jobs, migrate_schema

NODE_COMMAND = [sys.executable, "-m", "cluster", "--app-dir", str(REPOSITORY), "run"]
JOB_CLASSES: list[type[Job]] = [
    NoopJob, LimitedJob, ProbeJob, LimitedProbeJob, CountedJob, LimitedCountedJob, LongJob, LimitedLongJob, TickJob, *IDLE_CLASSES
]  # fmt: skip
SERVER_SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "4GB", "checkpoint_timeout": "15min"}
"""Everything else is Postgres's default: every commit reaches the disk. Named in README.md."""
PLACES = 100_000
"""Of the board: probes of one round."""
REPEATS = 3
JOBS = 100_000
SECONDS_TO_START_OR_STOP = 30
WARM_UP_JOBS = 2000


@dataclass(frozen=True)
class Options:
    """What the command line says. None: each scenario has its own."""

    repeats: int | None = None
    jobs: int | None = None
    probes: int = 200
    seconds: float | None = None
    rows: int | None = None
    processes: int | None = None
    concurrency: int | None = None
    pg_bin: Path | None = None
    database_url: str | None = None


@dataclass(frozen=True)
class Cpu:
    """CPU seconds used so far; None where that can't be seen."""

    coordinators: float | None
    workers: float | None
    postgres: float | None


class Claims(NamedTuple):
    """Round trips of claims so far."""

    seconds: float
    number: float

    def mean_since(self, earlier: Claims) -> float | None:
        """Milliseconds; None: there was none."""
        number = self.number - earlier.number
        return (self.seconds - earlier.seconds) / number * 1000 if number else None


class Bench:
    """One database and what is needed to measure on it."""

    def __init__(self, options: Options, url: str, folder: Path, connection: Connection, console: Console) -> None:
        self.options = options
        self.url = url
        self.connection = connection
        self.board_path = folder / "board"
        self.board = Board.create(self.board_path, PLACES)
        self._folder = folder
        self._console = console
        self._postmaster = processes.postmaster_of(connection.info.backend_pid)
        migrate_schema(connection)
        migrate_jobs(connection, JOB_CLASSES)
        connection.execute(bare.CREATE)

    def jobs(self, usual: int = JOBS) -> int:
        """How many to drain."""
        return self.options.jobs or usual

    def rows_or(self, usual: int) -> int:
        """How many other rows there are."""
        return self.options.rows or usual

    def seconds(self, usual: float) -> float:
        """How long to look."""
        return self.options.seconds or usual

    def rounds(self, what: str, usual: int = REPEATS) -> Iterator[int]:
        """Numbers the rounds of a scenario and shows which one runs; every variant is measured once in each."""
        count = self.options.repeats or usual
        for number in range(1, count + 1):
            self._console.print(f"{what}: round {number} of {count}", style="dim", highlight=False)
            yield number

    @contextmanager
    def other_database(self) -> Iterator[str]:
        """On the same server, empty, and dropped afterwards. Its URL."""
        with _database(self.url, "other") as url:
            yield url

    # --- nodes ---

    @contextmanager
    def node(
        self, module: str, number: int = 1, *, worker_processes: int | None = None, concurrency: int | None = None
    ) -> Iterator[Node]:
        """A node that performs the jobs of one module of bench.jobs, ready to work. number: tells log files apart."""
        port = free_port()
        environment = self._environment(
            module, port, worker_processes or self.options.processes, concurrency or self.options.concurrency
        )
        log_path = self._folder / f"node{number}.log"
        with log_path.open("w") as log:
            process = subprocess.Popen(
                NODE_COMMAND, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        node = Node(process, port, log_path)
        try:
            node.wait_until_ready()
            yield node
        finally:
            node.stop()

    def environment(self, url: str = "") -> dict[str, str]:
        """Default settings, whatever the caller's environment says. url: of another database."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
        return environment | {"CLUSTER_DATABASE_URL": url or self.url}

    def _environment(
        self, module: str, port: int, worker_processes: int | None, concurrency: int | None
    ) -> dict[str, str]:
        environment = self.environment() | {
            "CLUSTER_JOBS": f"bench.jobs.{module}",
            "CLUSTER_HTTP_HOST": "127.0.0.1",
            "CLUSTER_HTTP_PORT": str(port),
            VARIABLE: str(self.board_path),
        }
        if worker_processes is not None:
            environment["CLUSTER_PROCESSES"] = str(worker_processes)
        if concurrency is not None:
            environment["CLUSTER_CONCURRENCY"] = str(concurrency)
        return environment

    def cpu(self, *nodes: Node | SpawnProcess) -> Cpu:
        """Of these nodes, or bare clients in their place, and of the whole server."""
        whole = [processes.cpu_seconds(node.pid) for node in nodes]
        coordinators = [processes.cpu_seconds(node.pid, only=True) for node in nodes]
        return Cpu(
            _sum(coordinators), _difference(_sum(whole), _sum(coordinators)), processes.cpu_seconds(self._postmaster)
        )

    # --- rows ---

    def load(self, table: str, count: int, column: str = "number") -> None:
        """Empties the table and fills it with waiting jobs; statistics and visibility map are fresh then."""
        name, field = sql.Identifier(table), sql.Identifier(column)
        self.connection.execute(sql.SQL("TRUNCATE {}").format(name))
        insert = sql.SQL("INSERT INTO {} ({}) SELECT generate_series(1, %s)")
        self.connection.execute(insert.format(name, field), [count])
        self.connection.execute(sql.SQL("VACUUM ANALYZE {}").format(name))

    def pause(self, table: str, *, paused: bool) -> None:
        """Keeps nodes from claiming, as an operator would; the end of a pause reaches them at once."""
        self.connection.execute(
            "UPDATE cluster.job_types SET paused_at = CASE WHEN %s THEN now() END WHERE job_table = %s::regclass",
            [paused, table],
        )

    def wait_until_finished(self, table: str, timeout: float = 300, where: LiteralString = "true") -> None:
        """Returns when no row waits or runs. The database is asked rarely: times are read from the rows."""
        query = sql.SQL("SELECT FROM {} WHERE status IN ('not_started', 'running') AND {} LIMIT 1").format(
            sql.Identifier(table), sql.SQL(where)
        )
        deadline = time.monotonic() + timeout
        while self.connection.execute(query).fetchone() is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs of {table} did not end within {timeout:.0f} s; see {self._folder}")
            time.sleep(0.2)

    def jobs_per_second(self, table: str, where: LiteralString = "true") -> float:
        """Rows over the time from the first start to the last finish. All of them must have succeeded."""
        query = sql.SQL(
            "SELECT count(*), count(*) FILTER (WHERE status = 'succeeded'),"
            " extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM {} WHERE {}"
        ).format(sql.Identifier(table), sql.SQL(where))
        row = self.connection.execute(query).fetchone()
        assert row is not None
        count, succeeded, seconds = row
        if count != succeeded:
            raise RuntimeError(f"{count - succeeded} of {count} jobs of {table} did not succeed")
        return float(count / seconds)

    def sessions(self) -> int:
        """Of the database, but for the benchmark's own."""
        row = self.connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchone()
        return int(row[0]) if row else 0

    def warm_up(self, table: str) -> None:
        """Lets nodes start all workers and prepare all statements before anything is measured."""
        self.load(table, WARM_UP_JOBS)
        self.wait_until_finished(table)

    def program(self, name: str) -> Path | None:
        """A program of Postgres's, from the directory in use or from the PATH."""
        for folder in filter(None, (self.options.pg_bin, wheel_bin_dir())):
            if (folder / name).exists():
                return folder / name
        found = shutil.which(name)
        return Path(found) if found else None


class Node:
    """A running node: the coordinator's process, and below it its workers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
        self._process = process
        self._port = port
        self._log_path = log_path

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """RuntimeError, with the end of its log: it ended, or does not become ready."""
        deadline = time.monotonic() + SECONDS_TO_START_OR_STOP
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node did not start:\n{self._log_path.read_text()[-2000:]}")
            time.sleep(0.05)

    def claims(self) -> Claims:
        """From its metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as response:
            families = text_string_to_metric_families(response.read().decode())
        values = {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
        return Claims(values["cluster_claim_seconds_sum"], values["cluster_claim_seconds_count"])

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=1) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Drains it. A node that does not end is killed."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SECONDS_TO_START_OR_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def open_bench(options: Options, console: Console) -> Iterator[Bench]:
    """Starts a server, or uses that of the options, with a new database that is dropped afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="jobcluster-bench-"))
    folder.chmod(0o711)  # the server's user, who is not root, passes through
    try:
        with (
            _server_url(options, folder) as server_url,
            _database(server_url) as url,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            yield Bench(options, url, folder, connection, console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server_url(options: Options, folder: Path) -> Iterator[str]:
    if options.database_url is not None:
        yield options.database_url
        return
    server = EmbeddedPostgres(folder / "data", options.pg_bin, port=free_port(), settings=SERVER_SETTINGS)
    server.start()
    try:
        yield server.url()
    finally:
        server.stop("immediate")


@contextmanager
def _database(server_url: str, suffix: str = "") -> Iterator[str]:
    name = f"jobcluster_bench_{os.getpid()}{suffix}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            yield make_conninfo(server_url, dbname=name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def table_of(job_class: type[Job]) -> str:
    """Its job table."""
    return definition(job_class).table


def postgres_facts(connection: Connection) -> dict[str, str]:
    """Version, and the settings that matter most to the figures."""
    names = ["server_version", "fsync", "synchronous_commit", "full_page_writes", *SERVER_SETTINGS]
    rows: list[tuple[Any, ...]] = [
        connection.execute("SELECT current_setting(%s)", [name]).fetchone() or ("",) for name in names
    ]
    return dict(zip(names, (str(value) for (value,) in rows), strict=True))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
