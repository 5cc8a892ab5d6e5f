"""A node dies while somebody else is in the way: a login without any rights, clients of the probe port, whoever reads the log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psycopg

from tests.fault.harness import Stage
from tests.fault.nodes import FaultNode
from tests.fault.obstructed import ObstacleStage, is_told
from tests.fault.targets import busy_node
from tests.support.nodes import wait_until

SECONDS = 5.0
"""For which it lasts, on either side of the death of a node."""
SLOW_CLIENTS = 100
PIPE = 4096
"""Bytes that fit into the pipe to whoever reads the log."""


@contextlib.contextmanager
def _meanwhile(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Each in a thread of its own; it is told when the block is over."""
    over = threading.Event()
    threads = [threading.Thread(target=work, args=(over,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _kill_in_the_midst(stage: Stage) -> None:
    stage.fault()
    stage.wait(SECONDS)
    stage.fault()
    busy_node(stage).kill_all()
    stage.wait(SECONDS)


# --- a login without any rights ---


def hostile_notifies(stage: Stage) -> None:
    """Rings and cancels of jobs that run, and whatever else fits into a payload."""
    assert isinstance(stage, ObstacleStage)
    with stage.connect() as connection:
        connection.execute("CREATE ROLE mallory LOGIN")
        tables = [row[0] for row in connection.execute("SELECT job_table::oid::bigint FROM cluster.job_types")]
    url = stage.url.replace("//postgres@", "//mallory@")

    def notify(over: threading.Event) -> None:
        with psycopg.connect(url, autocommit=True) as mallory:
            while not over.is_set():
                cancels = [f"{random.choice(tables)} {execution.job[1]}" for execution in stage.running()]
                payloads = ["", "-", "9" * 7000, "\N{ELEPHANT}" * 1000, str(random.choice(tables)), *cancels]
                for channel in ("cluster_doorbell", "cluster_cancel"):
                    for _ in range(50):
                        mallory.execute("SELECT pg_notify(%s, %s)", [channel, random.choice(payloads)])

    with _meanwhile(notify, notify):
        _kill_in_the_midst(stage)


class HeldLocksStage(Stage):
    """Before any node comes, somebody takes the advisory locks of every job table, of all kinds that nodes use."""

    def watch(self, connection: psycopg.Connection) -> None:
        super().watch(connection)
        connection.execute("CREATE ROLE mallory LOGIN")
        self.mallory = psycopg.connect(self.url.replace("//postgres@", "//mallory@"), autocommit=True)
        self.mallory.execute(
            "SELECT pg_advisory_lock(class, job_table::oid::integer) FROM cluster.job_types, generate_series(1750, 1760) AS class"
        )


def held_locks(stage: Stage) -> None:
    """No node is on watch, so all look by the clock; limits hold and are used."""
    assert isinstance(stage, HeldLocksStage)
    with stage.connect() as connection:
        wait_until(lambda: is_told(connection, "table_lock_held"), "nodes name who holds them", 15)
    _kill_in_the_midst(stage)
    stage.mallory.close()
    stage.wait(SECONDS)


# --- clients of the probe port ---


class ProbedStage(Stage):
    """Nodes with a probe port."""

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        self.ports: dict[int, int] = {}

    def node_options(self, number: int) -> dict[str, Any]:
        self.ports[number] = self.reserve_port()
        return {"http_port": self.ports[number]}


def slow_probes(stage: Stage) -> None:
    """Clients that open connections and send next to nothing; nodes answer everybody else."""
    assert isinstance(stage, ProbedStage)

    def dawdle(over: threading.Event) -> None:
        with contextlib.ExitStack() as clients:
            while not over.wait(0.5):
                for number, port in stage.ports.items():
                    if stage.nodes[number].exit_code is None:
                        for _ in range(SLOW_CLIENTS):
                            with contextlib.suppress(OSError):
                                client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
                                client.send(b"GET /met")
                        assert stage.nodes[number].get("/livez") in {200, 0}
                clients.pop_all().close()

    with _meanwhile(dawdle):
        _kill_in_the_midst(stage)


# --- whoever reads the log ---


class ReadNode(FaultNode):
    """Its log goes through a narrow pipe to a process that writes it down."""

    reader: subprocess.Popen[bytes]

    def open_log(self) -> IO[bytes]:
        theirs, ours = os.pipe()
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE)
        with super().open_log() as file, os.fdopen(theirs, "rb") as end:
            self.reader = subprocess.Popen(["cat"], stdin=end, stdout=file)
        return os.fdopen(ours, "wb", buffering=0)

    def clean_up(self) -> None:
        super().clean_up()
        self.reader.kill()
        self.reader.wait()


class ReadStage(Stage):
    """Nodes whose log somebody reads."""

    NODE = ReadNode


def stopped_log_reader(stage: Stage) -> None:
    """Of every node: it stops reading, and the node goes on."""
    readers = [node.reader for node in stage.nodes if isinstance(node, ReadNode)]
    for reader in readers:
        reader.send_signal(signal.SIGSTOP)
    try:
        _kill_in_the_midst(stage)
    finally:
        for reader in readers:
            reader.send_signal(signal.SIGCONT)
