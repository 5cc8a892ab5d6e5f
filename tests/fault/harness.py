"""One run of one scenario: a server of its own, nodes, load, the fault, and the account of what became of every job."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from cluster.embedded import EmbeddedPostgres
from cluster.lease_clock import boottime
from cluster.migration import migrate_jobs, migrate_schema
from tests.fault import checker
from tests.fault.checker import Change, Final, History, Kind, Violation
from tests.fault.journal import Coroner, Execution, Job, parse
from tests.fault.load import HEARTBEAT, LIMITS, TABLES, Producer, leave_trails, source
from tests.fault.nodes import FaultNode
from tests.support.nodes import job_classes, wait_until, write_jobs
from tests.support.postgres import make_run_folder

if TYPE_CHECKING:
    from tests.fault.scenarios import Scenario

WARM_UP = 1.5
"""Seconds of load before the fault."""
SETTLE = 90.0
"""Seconds in which every job must be at its end after the load has ended."""


OCCURRENCES = """
WITH wanted AS (
    SELECT name, generate_series(created_at + every, next_due_at - interval '1 millisecond', every) AS due_at FROM cluster.schedules
), found AS (
    SELECT schedule AS name, scheduled_for AS due_at, count(*) AS jobs FROM tick_jobs WHERE schedule IS NOT NULL GROUP BY 1, 2
)
SELECT name, due_at::text, coalesce(jobs, 0) + CASE WHEN wanted IS NULL THEN 1 ELSE 0 END
FROM wanted FULL JOIN found USING (name, due_at)
"""
"""What every schedule should have had up to where it stands, and what it had; one that nobody wanted counts as a job too many."""


@dataclass
class Outcome:
    """What one run showed: one line of the results."""

    scenario: str
    fault: str
    seconds: float
    jobs: int
    executions: int
    interrupted: int
    violations: dict[str, int]
    late_writes_refused: int
    nodes_lost: int
    fences: int
    recovery: float
    slowest: str
    """Whose recovery that was."""
    details: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each part of the run."""

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Stage:
    """Where a scenario plays. Subclasses put something between nodes and server, or replace the server."""

    PROGRAMS: tuple[str, ...] = ()
    DEVICES: tuple[str, ...] = ()
    ROOT = False
    PROCESSES = 2
    """Workers of each node."""
    NODE = FaultNode

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        self.folder = folder
        self.lease = 3.0 if short else 6.0
        """Seconds."""
        self._short = short
        self._reservations: list[socket.socket] = []
        self.server = EmbeddedPostgres(
            self.data_dir, bin_dir, port=self.reserve_port(), fast=True, settings=self.server_settings()
        )
        self.journal = folder / "journal"
        self.faults: list[float] = []
        self.deleted: set[Job] = set()
        self.may_fail: set[Job] = set()
        self.nodes: list[FaultNode] = []
        self._node_count = nodes
        self._over = folder / "over"
        self.source = source(self.journal, folder / "locks", self._over, self.lease + 1)
        """The package `jobs` of the nodes."""
        self._coroner = Coroner(self.journal)
        self.producer: Producer | None = None
        self._loaded_until = float("inf")

    # --- what subclasses replace ---

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def server_settings(self) -> dict[str, str]:
        """Further lines of postgresql.conf."""
        return {}

    def watch(self, connection: psycopg.Connection) -> None:
        """The tables are there, the nodes are not yet."""
        leave_trails(connection)

    def start_server(self) -> None:
        self.server.start()

    def stop_server(self) -> None:
        self.server.stop("immediate")

    @property
    def url(self) -> str:
        """How the harness and the producer reach the database, whatever happens to the nodes."""
        return self.server.url()

    def node_url(self, number: int) -> str:
        """How a node reaches it."""
        del number
        return self.server.url()

    def node_options(self, number: int) -> dict[str, Any]:
        """Further arguments of FaultNode."""
        del number
        return {}

    # --- life ---

    @contextlib.contextmanager
    def open(self) -> Iterator[Stage]:
        """Server and nodes are up, load is on; nothing is left afterwards."""
        (self.folder / "locks").mkdir()
        self.journal.touch()
        try:
            self.start_server()
            self.migrate(self.source)
            with self.connect() as connection:
                self.watch(connection)
            self._coroner.start()
            for _ in range(self._node_count):
                self.add_node()
            for node in self.nodes:
                node.wait_ready()
            self.producer = Producer(self.url)
            yield self
        finally:
            self._close()

    def _close(self) -> None:
        if self.producer is not None:
            with contextlib.suppress(AssertionError, RuntimeError):
                self.producer.stop()
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError, ValueError):
                node.clean_up()
        with contextlib.suppress(RuntimeError):
            self._coroner.stop()
        self.stop_server()
        for reservation in self._reservations:
            reservation.close()

    def reserve_port(self) -> int:
        """A TCP port of 127.0.0.1 for this run alone, also while nothing listens on it.

        Below the range from which the kernel gives ports to clients. The name of a socket, which the kernel frees when
        this process ends, tells other runs that it is taken.
        """
        while True:
            port = random.randrange(20_000, 32_000)
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0jobcluster-fault-{port}")
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
            self._reservations.append(reservation)
            return port

    # --- what scenarios use ---

    def migrate(self, text: str) -> None:
        """Makes the database fit for a version of the package `jobs`."""
        folder = self.folder / "app"
        write_jobs(folder, text)
        with self.connect() as connection:
            migrate_schema(connection)
            migrate_jobs(connection, job_classes(folder))

    def add_node(self) -> FaultNode:
        """One more node, started, not yet ready."""
        number = len(self.nodes)
        folder = self.folder / f"node{number}"
        write_jobs(folder, self.source)
        node = self.NODE(
            number, self.node_url(number), folder, processes=self.PROCESSES, lease=self.lease, heartbeat_interval=HEARTBEAT,
            shutdown_timeout=12, **self.node_options(number),
        )  # fmt: skip
        self.nodes.append(node)
        node.start()
        return node

    def replace(self) -> FaultNode:
        """What a supervisor does when a node has ended: starts another."""
        new = self.add_node()
        new.wait_ready()
        return new

    def rounds(self, number: int) -> range:
        """How often to repeat a fault."""
        return range(1 if self._short else number)

    def enqueue(self, name: str, number: int) -> None:
        """So many jobs of a type at once, besides those that come all the time."""
        assert self.producer is not None
        query = sql.SQL("INSERT INTO {} (priority) SELECT 50 FROM generate_series(1, %s) RETURNING id")
        with self.connect() as connection:
            rows = connection.execute(query.format(sql.Identifier(TABLES[name])), [number]).fetchall()
        self.producer.acknowledged |= {(name, job_id) for (job_id,) in rows}

    def fault(self) -> None:
        """Now something is broken."""
        self.faults.append(boottime())

    def wait(self, seconds: float) -> None:
        """Lets it go on under load."""
        time.sleep(seconds)

    def executions(self) -> list[Execution]:
        """So far."""
        text = self.journal.read_text()
        return parse(text[: text.rfind("\n") + 1].splitlines())

    def running(self) -> list[Execution]:
        """Executions in progress now."""
        return [e for e in self.executions() if e.ended is None and e.pid not in self._coroner.deaths]

    def connect(self) -> psycopg.Connection:
        """In autocommit."""
        return psycopg.connect(self.url, autocommit=True)

    # --- the end ---

    def settle(self) -> None:
        """Waits until every job is at its end; the long ones end with the load."""
        assert self.producer is not None
        self.producer.stop()
        self._over.touch()
        self._loaded_until = boottime()
        wait_until(self.end_schedules, "no schedule comes any more", SETTLE)
        wait_until(self.all_final, "every job is at its end", SETTLE, self._unfinished)

    def end_schedules(self) -> bool:
        """Once they have made up for what they missed. Those that run late are given time."""
        with contextlib.suppress(psycopg.OperationalError), self.connect() as connection:
            ended = "UPDATE cluster.schedules SET paused_at = now() WHERE paused_at IS NULL AND next_run_at > now()"
            connection.execute(ended)
            left = connection.execute("SELECT FROM cluster.schedules WHERE paused_at IS NULL").fetchone()
            return left is None
        return False

    def all_final(self) -> bool:
        return not self._unfinished()

    def _unfinished(self) -> str:
        try:
            with self.connect() as connection:
                rows = [(name, *row) for name in self._tables(connection) for row in connection.execute(
                    sql.SQL("SELECT id, status::text, locked_by::text, attempts_count, last_error FROM {} WHERE status NOT IN "
                            "('succeeded', 'failed', 'timed_out', 'cancelled') LIMIT 5").format(sql.Identifier(TABLES[name])))
                ]  # fmt: skip
        except psycopg.OperationalError as error:
            return str(error)
        return "\n".join(map(str, rows))

    def _tables(self, connection: psycopg.Connection) -> list[str]:
        return [
            name
            for name, table in TABLES.items()
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone() != (None,)
        ]

    def stop_nodes(self) -> list[str]:
        """SIGTERM to all that run; what was wrong about their ends."""
        living = [node for node in self.nodes if node.exit_code is None]
        for node in living:
            node.terminate()
        codes = {node.number: node.wait_exit(30) for node in living}
        return [f"node {number} ended with {code}" for number, code in codes.items() if code != 0]

    def history(self) -> History:
        """Everything that is known once all is over."""
        offset = _offset_of_the_database()
        with self.connect() as connection:
            rows = {
                (name, job_id): Final(status, attempts)
                for name in self._tables(connection)
                for job_id, status, attempts in connection.execute(
                    sql.SQL("SELECT id, status::text, attempts_count FROM {}").format(sql.Identifier(TABLES[name]))
                )
            }
            changes = [
                Change((name, job_id), at - offset, *rest)
                for name, job_id, at, *rest in connection.execute(
                    "SELECT job_type, id, extract(epoch FROM at)::float8, old, new, attempts_before, attempts FROM trail ORDER BY n"
                )
            ]
            occurrences = {(name, due_at): jobs for name, due_at, jobs in connection.execute(OCCURRENCES)}
        assert self.producer is not None
        return History(
            self.executions(), self._coroner.deaths, changes, rows, frozenset(self.producer.acknowledged), LIMITS,
            frozenset(self.deleted), loaded_until=self._loaded_until, may_fail=frozenset(self.may_fail),
            occurrences=occurrences,
        )  # fmt: skip

    def count_logged(self, event: str) -> int:
        """Log lines of all nodes, or what they count."""
        return sum(int(line.get("count", 1)) for node in self.nodes for line in node.log(event))


def run(scenario: Scenario, bin_dir: Path | None = None, *, keep: bool = False, short: bool = False) -> Outcome:
    """Plays a scenario once; short: with a short lease, and its fault once. AssertionError: it did not come to its end."""
    folder = make_run_folder()
    begun = time.monotonic()
    phases = Phases()
    stage = scenario.stage(folder, bin_dir, 2 if short else scenario.nodes, short=short)
    try:
        with stage.open():
            assert stage.producer is not None
            stage.producer.start()
            phases.end("start")
            wait_until(lambda: {e.job[0] for e in stage.running()} >= scenario.busy_with, "the load is on", 20)
            stage.wait(WARM_UP / 3 if short else WARM_UP)
            phases.end("load")
            scenario.inject(stage)
            stage.wait(0.5 if short else scenario.afterwards)
            phases.end("fault")
            stage.settle()
            phases.end("settle")
            problems = stage.stop_nodes()
            history = stage.history()
            phases.end("stop")
            outcome = _outcome(scenario, stage, history, problems)
        outcome.seconds, outcome.phases = round(time.monotonic() - begun, 1), phases.seconds
        return outcome
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


class Phases:
    """Measures the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """What was going on until now had this name."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._since, 1)
        self._since = now


def _outcome(scenario: Scenario, stage: Stage, history: History, problems: list[str]) -> Outcome:
    violations: list[Violation] = checker.check(history)
    recovery, slowest = checker.recovery(history, stage.faults)
    counts = {kind.value: sum(v.kind is kind for v in violations) for kind in Kind}
    return Outcome(
        scenario.name, scenario.fault, 0.0, len(history.rows) + len(history.deleted - history.rows.keys()),
        len(history.executions), sum(not e.completed for e in history.executions),
        {**counts, "other": len(problems)}, stage.count_logged("claims_lost"), stage.count_logged("node_lost"),
        stage.count_logged("lease_lost"), round(recovery, 2), slowest,
        [f"{v.kind}: {v.text}" for v in violations][:20] + problems,
    )  # fmt: skip


def _offset_of_the_database() -> float:
    """Seconds by which its clock is ahead of the journal's: of several readings, the one that was disturbed least."""
    readings = []
    for _ in range(20):
        before = boottime()
        wall = time.time()
        after = boottime()
        readings.append((after - before, wall - before))
    return min(readings)[1]
