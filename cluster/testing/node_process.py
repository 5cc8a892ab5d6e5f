"""Real nodes for tests: `cluster run` in a process of its own, with its workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

import psycopg

from cluster.errors import ClusterError

_TO_START, _TO_STOP = 30.0, 30.0
_PAUSE = 0.02


class NodeProcess:
    """One that is ready when it is there. log_file: what it has said so far."""

    def __init__(self, database: str, app_dir: Path, log_file: Path, settings: dict[str, object]) -> None:
        self.log_file = log_file
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_HTTP")}
        environment |= {"CLUSTER_HTTP_PORT": "0", "CLUSTER_PROCESSES": "1", "CLUSTER_DATABASE_URL": database}
        environment |= {f"CLUSTER_{name.upper()}": str(value) for name, value in settings.items()}
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster", "run"],
                cwd=app_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which stops it
            )

    def wait_ready(self, database: str) -> None:
        """ClusterError: it has ended, or takes too long; with what it has said."""
        until = time.monotonic() + _TO_START
        with psycopg.connect(database, autocommit=True) as connection:
            while connection.execute(_READY, [self._process.pid]).fetchone() is None:
                if self._process.poll() is not None:
                    raise ClusterError(f"the node has ended with {self._process.returncode}:\n{self.log()}")
                if time.monotonic() > until:
                    raise ClusterError(f"the node is not ready after {_TO_START:g} s:\n{self.log()}")
                time.sleep(_PAUSE)

    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        """As SIGTERM does: it finishes what runs. Once is enough."""
        self._process.terminate()
        try:
            self._process.wait(_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """As a machine that loses power: its jobs go to other nodes, as soon as those have noticed."""
        self._process.kill()
        self._process.wait()


class StartNode(Protocol):
    """settings: as the variables, in small letters and without CLUSTER_: `queues="email"`. One worker process, if not said."""

    def __call__(self, **settings: object) -> NodeProcess: ...


@contextmanager
def nodes(database: str, app_dir: Path, folder: Path, **defaults: object) -> Iterator[StartNode]:
    """A function that starts one more; all are stopped at the end. defaults: settings, if not given then."""
    numbers = count(1)
    with ExitStack() as stack:

        def start(**settings: object) -> NodeProcess:
            node = NodeProcess(database, app_dir, folder / f"node-{next(numbers)}.log", defaults | settings)
            stack.callback(node.stop)
            node.wait_ready(database)
            return node

        yield start


_READY = "SELECT FROM cluster.nodes WHERE pid = %s AND state = 'live' AND slots > 0"
