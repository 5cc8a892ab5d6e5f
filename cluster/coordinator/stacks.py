"""What the threads of a worker are doing, as it writes it down when asked to, even while its job holds the interpreter."""

from __future__ import annotations

import contextlib
import os
import sys

from cluster.spawn import STACK_SIGNAL

LARGEST = 64 * 1024
"""Bytes that are read of what was written."""


class Stacks:
    """The file between a coordinator and one worker. Where there are no such files nothing is told."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("jobcluster-stacks") if sys.platform == "linux" else -1

    @property
    def path(self) -> str:
        """As the worker can open it; empty: there is none."""
        return f"/proc/{os.getpid()}/fd/{self._memory}" if self._memory >= 0 else ""

    def ask(self, pid: int) -> None:
        """The worker writes them a moment later, unless it is stopped."""
        if self._memory >= 0:
            self.forget()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STACK_SIGNAL)

    def read(self) -> str:
        """What it has written since it was asked, the innermost call first; empty: nothing yet."""
        if self._memory < 0:
            return ""
        return os.pread(self._memory, LARGEST, 0).decode(errors="replace").strip()

    def forget(self) -> None:
        """What was written has been told."""
        if self._memory >= 0:
            os.ftruncate(self._memory, 0)

    def close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
