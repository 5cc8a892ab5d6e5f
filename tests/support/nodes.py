"""Real nodes for tests: `cluster run` in a process of its own, on a test's database and with job modules that the test writes.

A node and all that descends from it live in one session, so that nothing outlives the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from cluster.discovery import import_jobs
from cluster.job import Job
from cluster.migration import migrate_jobs

COMMAND = ("-m", "cluster", "run")
PAUSE = 0.01
"""Seconds between two looks of everything that waits here."""

Source = str | Mapping[str, str]
"""Text of jobs/__init__.py, or the texts of the package's modules by name."""

_running: list[NodeProcess] = []


class NodeProcess:
    """One node. settings: names as in `Settings`, values as in the environment."""

    def __init__(self, database_url: str, app_dir: Path, **settings: object) -> None:
        self.database_url = database_url
        self.app_dir = app_dir
        self.http_port = free_port()
        self._log_file = app_dir / "node.log"
        self._output_file = app_dir / "node.out"
        self._settings = {"processes": 2, "http_port": self.http_port, "http_host": "127.0.0.1"} | settings
        self._process: subprocess.Popen[bytes] | None = None

    # --- life ---

    def start(self) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CLUSTER_", "PG")) and name != "DATABASE_URL"
        }
        environment |= {"CLUSTER_DATABASE_URL": self.database_url, "CLUSTER_LOG_FORMAT": "json"}
        environment |= {f"CLUSTER_{name.upper()}": str(value) for name, value in self._settings.items()}
        with self._log_file.open("ab") as log, self._output_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *COMMAND],
                cwd=self.app_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        _running.append(self)

    def wait_ready(self, timeout: float = 20) -> None:
        """Until /readyz says that it may claim and has a worker."""
        wait_until(lambda: self.get("/readyz") == 200, "the node is ready", timeout)

    def terminate(self) -> None:
        """SIGTERM, without waiting for what follows."""
        self._popen.send_signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """SIGHUP: it loads job code anew."""
        self._popen.send_signal(signal.SIGHUP)

    def wait_exit(self, timeout: float = 20) -> int:
        """The exit code; negative: the signal that ended it."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node did not end within {timeout:g} s\n{log_tails()}") from None

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM, then the exit code."""
        self.terminate()
        return self.wait_exit(timeout)

    def kill(self) -> None:
        """SIGKILL of the coordinator alone: what it leaves behind must end by itself."""
        self._popen.kill()
        self._popen.wait()

    def clean_up(self) -> None:
        """Kills whatever is left of the node. AssertionError: something survived even that."""
        if self._process is None:
            return
        self.signal_all(signal.SIGKILL)
        self._process.wait()
        _running.remove(self)  # one that has failed, as a test wanted, must not end the wait
        wait_until(lambda: not self.processes(), "all processes of the node are gone", timeout=10)

    # --- looking at it ---

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None: it is still running."""
        return self._popen.poll()

    def processes(self) -> list[int]:
        """Every living process of the node's session: coordinator, forkserver, workers, and what jobs started."""
        return session_processes(self._popen.pid)

    def signal_all(self, number: signal.Signals) -> None:
        """To all of them."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def workers(self) -> list[int]:
        """The worker processes: the forkserver's children."""
        everyone = list(_processes())
        children = {process.pid for process in everyone if process.parent == self._popen.pid}
        return [process.pid for process in everyone if process.parent in children]

    def forkservers(self) -> list[int]:
        """One, but for the time in which job code is loaded anew."""
        children = [process.pid for process in _processes() if process.parent == self._popen.pid]
        return [pid for pid in children if b"forkserver" in _command_line(pid)]

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Log lines so far, all or those of one event. A line that is not JSON becomes {"event": line}."""
        lines = [_parsed(line) for line in self._log_file.read_text(errors="replace").splitlines() if line]
        return [line for line in lines if event is None or line.get("event") == event]

    def output(self) -> str:
        """What the node and its jobs printed."""
        return self._output_file.read_text(errors="replace")

    def get(self, path: str) -> int:
        """The status of a probe; 0: nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by their full name: `cluster_jobs_claimed_total{job_type="A",queue="b"}`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as response:
            text = response.read().decode()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the node was not started"
        return self._process


@contextlib.contextmanager
def running_node(
    database_url: str, app_dir: Path, source: Source, *, setup: str = "", node_url: str = "", **settings: object
) -> Iterator[NodeProcess]:
    """A node that is ready, its job tables migrated. setup: SQL to run between the two. node_url: the node's, if it is another.

    Leaves no process behind.
    """
    write_jobs(app_dir, source)
    with psycopg.connect(database_url, autocommit=True, client_encoding="utf-8") as connection:
        migrate_jobs(connection, job_classes(app_dir))
        if setup:
            connection.execute(setup.encode())
    node = NodeProcess(node_url or database_url, app_dir, **settings)
    try:
        node.start()
        node.wait_ready()
        yield node
    finally:
        node.clean_up()


def _command_line(pid: int) -> bytes:
    """Empty: it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def write_jobs(app_dir: Path, source: Source) -> None:
    """Writes package `jobs`."""
    package = app_dir / "jobs"
    package.mkdir(parents=True, exist_ok=True)
    modules = {"__init__": source} if isinstance(source, str) else {"__init__": "", **source}
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text)


def job_classes(app_dir: Path) -> list[type[Job]]:
    """The classes of package `jobs`, imported without leaving a trace: another test has another package `jobs`."""
    path = sys.path[:]
    try:
        return import_jobs(("jobs",), app_dir)
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] == "jobs"]:
            del sys.modules[name]


# --- waiting ---


def wait_for(
    connection: psycopg.Connection[Any], query: str, parameters: Sequence[Any] = (), timeout: float = 20
) -> Any:  # Any: whatever the query selects
    """Polls until the query's first value is true, and returns it."""
    found: list[Any] = [None]

    def look() -> bool:
        with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
            row = cursor.execute(query.encode(), parameters).fetchone()
        found[0] = row[0] if row else None
        return bool(found[0])

    wait_until(look, f"{query} with {list(parameters)!r}", timeout, lambda: f"last answer: {found[0]!r}")
    return found[0]


def wait_until(
    condition: Callable[[], bool], what: str, timeout: float = 20, seen: Callable[[], str] = lambda: ""
) -> float:
    """Polls a condition; returns the seconds that it took. AssertionError: says what was awaited, and what the nodes logged."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout:
            raise AssertionError(f"waited {timeout:g} s in vain for: {what}\n{seen()}\n{log_tails()}")
        if any((node.exit_code or 0) > 0 for node in _running):
            raise AssertionError(f"a node failed while waiting for: {what}\n{seen()}\n{log_tails()}")
        time.sleep(PAUSE)
    return time.monotonic() - begun


def log_tails(lines: int = 40) -> str:
    """The last log lines of every node that is running."""
    return "\n".join(
        f"--- node {node.pid} (exit code {node.exit_code}), end of its log:\n"
        + "\n".join(node._log_file.read_text(errors="replace").splitlines()[-lines:])
        for node in _running
    )


# --- processes ---


def session_processes(session: int) -> list[int]:
    """Every living process of it."""
    return [process.pid for process in _processes() if process.session == session]


class _Process:
    """A line of /proc/PID/stat, which see; the command's name may hold spaces and parentheses."""

    def __init__(self, pid: int, stat: str) -> None:
        self.pid = pid
        state, parent, _, session = stat.rpartition(")")[2].split()[:4]
        self.dead = state in {"Z", "X"}
        self.parent, self.session = int(parent), int(session)


def _processes() -> Iterator[_Process]:
    """All living processes; a zombie only waits to be counted."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                process = _Process(int(folder.name), (folder / "stat").read_text())
                if not process.dead:
                    yield process


def _parsed(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {"event": line}
    return parsed if isinstance(parsed, dict) else {"event": line}


def free_port() -> int:
    """Below the range from which the kernel gives ports to clients, so that none of them takes it before the node does."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as trial:
            trial.bind(("127.0.0.1", port))
            return port
