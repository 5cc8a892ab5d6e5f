"""Nodes of the fault suite: as in tests.support.nodes, and in a network namespace, under another clock, or with a role killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support import nodes
from tests.support.nodes import COMMAND, NodeProcess, wait_until

READY_TIMEOUT = 30.0


class FaultNode(NodeProcess):
    """prefix: a program that becomes the node, as `ip netns exec`. It needs no HTTP: readiness is read from its log."""

    def __init__(
        self,
        number: int,
        database_url: str,
        app_dir: Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        super().__init__(database_url, app_dir, **{"http_port": 0, "log_level": "debug"} | settings)
        self.http_port = int(str(self._settings["http_port"]))
        self.number = number
        self._prefix = list(prefix)
        self._environment = dict(environment or {})

    def start(self) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CLUSTER_", "PG")) and name != "DATABASE_URL"
        }
        settings = {f"CLUSTER_{name.upper()}": str(value) for name, value in self._settings.items()}
        own = {"CLUSTER_DATABASE_URL": self.database_url, "CLUSTER_LOG_FORMAT": "json"}
        own["TMPDIR"] = str(self.app_dir)  # what a killed node leaves there goes with the run's folder
        with self.open_log() as log, self._output_file.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, *COMMAND],
                cwd=self.app_dir,
                env=kept | own | settings | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        nodes._running.append(self)

    def open_log(self) -> IO[bytes]:
        """Where its stderr goes."""
        return self._log_file.open("ab")

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        wait_until(lambda: bool(self.log("node_started") and self.log("worker_started")), "the node is ready", timeout)

    @property
    def forkserver(self) -> int:
        """The process from which the workers are forked."""
        everyone = {process.pid: process.parent for process in nodes._processes()}
        (forkserver,) = {everyone[worker] for worker in self.workers()}
        return forkserver

    def kill_all(self) -> None:
        """The whole node at once, as a host that loses its power."""
        self.signal_all(signal.SIGKILL)
        self._popen.wait()
        nodes._running.remove(self)

    def wait_gone(self) -> None:
        """After a kill of the coordinator: what it left behind ends by itself."""
        wait_until(lambda: not self.processes(), "nothing of the killed node is left", 10)
        nodes._running.remove(self)


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP now, SIGCONT at the end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    """Its child processes now."""
    return [process.pid for process in nodes._processes() if process.parent == pid]
