"""Process groups of workers: each worker leads one, in which everything is that its jobs have started."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def lead_group() -> None:
    """In a worker, at its start. A Ctrl-C at the terminal then does not reach the programs of its jobs either."""
    with contextlib.suppress(OSError):  # it may not if it leads a session
        os.setpgid(0, 0)


def end_group(leader: int) -> None:
    """SIGKILL to all that are left. Nothing happens if there is no such group."""
    if leader > 1 and leader != os.getpgid(0):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def children(pid: int) -> set[int]:
    """Pids of a process's children, those that have ended and were not waited for included. Empty where it can't be known."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return found


class Orphans:
    """What lands at process 1 of a container: children of processes that have ended, and for which nobody waits any more."""

    def __init__(self) -> None:
        self._is_init = os.getpid() == 1
        self._seen: set[int] = set()

    def reap(self, own: set[int | None]) -> None:
        """Waits for those that had ended at the last call already. own: children that somebody else waits for."""
        if not self._is_init:
            return
        ended = {pid for pid in children(1) if pid not in own and _is_zombie(pid)}
        for pid in ended & self._seen:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._seen = ended


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
