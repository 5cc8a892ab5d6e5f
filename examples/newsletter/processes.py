"""The processes of the demo: starts them, ends all of them however the demo ends, and keeps Ctrl-C from coming in between."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from cluster.embedded import EmbeddedPostgres, free_port, wheel_bin_dir

APP = Path(__file__).parent
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_TO_START = 30
SECONDS_TO_STOP = 15


class DemoError(Exception):
    """The demo can't go on. log: the file that may say why."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class Processes:
    """Postgres, the mail server, the nodes and the dashboard, in a temporary folder that goes with them.

    database_url: of a server that is there; empty: one of our own. port: on which ours listens too; None: on its socket only.
    http_host: where the nodes' probes and metrics are.
    """

    def __init__(self, database_url: str = "", port: int | None = None, http_host: str = "127.0.0.1") -> None:
        # Postgres does not run as root: its user has to pass through the folder.
        self.folder = Path(tempfile.mkdtemp(prefix="jobcluster-demo-"))
        self.folder.chmod(0o711)
        self.media = self.folder / "media"
        self.mails = self.folder / "mails.jsonl"
        for name in ("photos", "thumbnails"):
            (self.media / name).mkdir(parents=True)
        self.postgres = EmbeddedPostgres(self.folder / "data", fast=True, port=port)
        self._database_url = database_url
        self._http_host = http_host
        self.nodes: list[Node] = []
        self._started: list[subprocess.Popen[str]] = []
        self._smtp_port = 0
        self._interruptible = True
        self._interrupted = False
        for number in ENDINGS:
            signal.signal(number, self._interrupt)

    @property
    def database_url(self) -> str:
        """Of whichever server it is."""
        return self._database_url or self.postgres.url()

    def start_postgres(self) -> None:
        """Ctrl-C waits until it is up: what is half started could not be found and stopped."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # inherited by initdb and pg_ctl
        try:
            self.postgres.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)

    def start_mail_server(self, *options: str) -> int:
        """Returns its port. It ends with our end of the pipe, even if we are killed."""
        program = [sys.executable, str(APP / "smtp_server.py"), "--port", "0", "--store", str(self.mails)]
        log = self.folder / "smtp_server.log"
        process = self.start([*program, "--until-eof", *options], log, stdout=subprocess.PIPE)
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise DemoError("the mail server did not start", log)
        self._smtp_port = int(port)
        return self._smtp_port

    def cluster(self, *arguments: str) -> str:
        """Runs a `cluster` command to its end; returns what it prints."""
        return self._run([sys.executable, "-m", "cluster", *arguments])

    def psql(self, statements: str) -> None:
        """Runs SQL with the program that comes with Postgres."""
        self._run([str(wheel_bin_dir() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", self.database_url], statements)

    def start_node(self, port: int | None = None) -> None:
        """port: of its probes and metrics; None: a free one."""
        number = len(self.nodes) + 1
        port, log = port or free_port(), self.folder / f"node-{number}.log"
        options = ["--processes", "2", "--http-port", str(port), "--log-format", "json"]
        process = self.start([sys.executable, "-m", "cluster", "run", *options], log)
        self.nodes.append(Node(process, port, log))

    def start_dashboard(self) -> str:
        """Without a password, for this machine alone. Returns its address."""
        log = self.folder / "dashboard.log"
        process = self.start([sys.executable, "-m", "cluster", "dashboard", "--auth", "none", "--port", "0"], log)
        deadline = time.monotonic() + SECONDS_TO_START
        while not (found := re.search(r"^dashboard: (\S+)\n", log.read_text(), re.MULTILINE)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError("the dashboard did not start", log)
            time.sleep(0.05)
        return found[1]

    def stop(self) -> None:
        """Ends everything, and can't be interrupted. Safe to call at any time, also twice."""
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        for process in self._started:
            process.terminate()
        deadline = time.monotonic() + SECONDS_TO_STOP
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # its group: a node's workers too
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self.postgres.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        """Ours without what points at another database, and with what the application reads."""
        foreign = ("CLUSTER_", "PG", "DATABASE_URL", "CREDENTIALS_DIRECTORY")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return kept | {
            "CLUSTER_DATABASE_URL": self.database_url,
            "CLUSTER_HTTP_HOST": self._http_host,
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self._smtp_port),
            "MEDIA_DIR": str(self.media),
        }

    def start(self, command: Sequence[str], log: Path, stdout: int | None = None) -> subprocess.Popen[str]:
        """What `stop` ends. In a session of its own: Ctrl-C goes to a terminal's whole group, and the order is ours."""
        with log.open("w") as file, self._uninterrupted():
            process = subprocess.Popen(
                command, cwd=APP, env=self._environment(), stdin=subprocess.PIPE, stdout=stdout or file, stderr=file,
                text=True, start_new_session=True,
            )  # fmt: skip
            self._started.append(process)
        return process

    def _run(self, command: Sequence[str], text: str = "") -> str:
        ended = subprocess.run(
            command, cwd=APP, env=self._environment(), input=text, capture_output=True, text=True, check=False
        )
        if ended.returncode != 0:
            raise DemoError(f"{Path(command[0]).name} ended with {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        self._interruptible = False
        try:
            yield
        finally:
            self._interruptible = True
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raises once: a second Ctrl-C must not cut the cleaning up short."""
        first, self._interrupted = not self._interrupted, True
        if first and self._interruptible:
            raise KeyboardInterrupt


class Node:
    """One `cluster run`."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def wait_until_ready(self) -> None:
        """Asks its probe, as Kubernetes would."""
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._is_ready():
            if self.process.poll() is not None:
                raise DemoError(f"a node ended with {self.process.returncode}", self.log)
            if time.monotonic() > deadline:
                raise DemoError(f"a node is not ready after {SECONDS_TO_START} s", self.log)
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def terminate(self) -> int | None:
        """SIGTERM; returns the exit code, None if it goes on."""
        self.process.terminate()
        try:
            return self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            return None
