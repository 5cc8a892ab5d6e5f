"""`.cluster/run` of an application: which supervisor and nodes `cluster start` has started here, and their log.

The lock is the proof of life: the supervisor holds it while it lives, and the kernel lets go of it with the process, so neither a
crash nor a reboot leaves anything that has to be judged. state.json, which the supervisor alone writes, says who that is. Processes
are known by pid and start time, never by name: a pid is given to another program sooner or later.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.embedded.programs import write_private
from cluster.embedded.project import project_folder
from cluster.errors import ClusterError


@dataclass(frozen=True)
class Process:
    """started: when, in the words of this system, with the boot that it belongs to."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """One that lives."""
        return cls(pid, _started(pid) or "")

    @property
    def lives(self) -> bool:
        """The same process, not just its number."""
        return bool(self.started) and _started(self.pid) == self.started

    def send(self, number: signal.Signals) -> bool:
        """Whether it was there to get the signal. Nobody else gets it."""
        if not hasattr(os, "pidfd_open"):  # macOS
            if self.lives:
                os.kill(self.pid, number)
                return True
            return False
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.lives:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


@dataclass(frozen=True)
class NodeEntry:
    """queues, http_port: empty, 0 as in the settings."""

    process: Process
    queues: str
    http_port: int


@dataclass
class State:
    """What the supervisor tells of itself. places: how many nodes there are to be. timeout: seconds that a drain may take.

    nodes: all that live, those included that are to take a place, or have left it. restarts: that have ended; restart_code: of the
    last one, 0: it has worked. renewed: places that the restart under way is through with, None: none is under way.
    """

    supervisor: Process
    places: int
    timeout: float
    nodes: list[NodeEntry] = field(default_factory=list)
    restarts: int = 0
    restart_code: int = 0
    renewed: int | None = None


class RunFolder:
    """Of the application in this directory; made when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory.resolve() / ".cluster" / "run"
        self.log = self.path / "log"
        self._state = self.path / "state.json"

    def make(self) -> None:
        """With its parents; readable for nobody else."""
        try:
            project_folder(self._directory)
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ClusterError(f"can't make {self.path}: {error.strerror}") from error

    def take_lock(self) -> int | None:
        """A descriptor that has it, which a child may inherit; None: somebody else has it."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ClusterError(f"can't open {self.path / 'lock'}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    @property
    def is_locked(self) -> bool:
        """By a supervisor, or by a `cluster start` that is about to start one."""
        if not (self.path / "lock").exists():
            return False
        descriptor = self.take_lock()
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def read(self) -> State | None:
        """None: there is none, or it is of another version and says nothing."""
        try:
            values = json.loads(self._state.read_text())
            nodes = [NodeEntry(**node | {"process": Process(**node["process"])}) for node in values["nodes"]]
            return State(**values | {"supervisor": Process(**values["supervisor"]), "nodes": nodes})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, state: State) -> None:
        """Replaced as a whole: readers take no lock."""
        values: dict[str, Any] = asdict(state)
        write_private(self._state, json.dumps(values, indent=2) + "\n", None)

    @property
    def log_size(self) -> int:
        """Bytes so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def clear(self) -> None:
        """Nothing runs here any more."""
        self._state.unlink(missing_ok=True)

    def orphans(self) -> list[Process]:
        """Nodes that live on although their supervisor was killed."""
        state = self.read()
        return [] if state is None else [node.process for node in state.nodes if node.process.lives]

    def check_no_orphans(self) -> None:
        """ClusterError: there are some."""
        if orphans := self.orphans():
            pids = ", ".join(str(process.pid) for process in orphans)
            raise ClusterError(f"nodes run here whose supervisor was killed (pid {pids}): `cluster stop` ends them")


def _started(pid: int) -> str | None:
    """None: it has ended."""
    if not Path("/proc/self").exists():
        shown = subprocess.run(
            ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return shown.stdout.strip() or None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = stat.rpartition(")")[2].split()  # the name before may hold spaces and parentheses
    return None if values[0] in {"Z", "X"} else f"{boot} {values[19]}"
