"""The process from which workers are forked: its preloading, and the time at which the kernel is to end it.

Owned by the pool, which has a second one while job code is loaded anew. multiprocess knows one only, and starts another when it
has died: here each has its threads, and which one a process is forked from goes by the thread that starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import multiprocess
from multiprocess import forkserver, resource_tracker

from cluster.coordinator.lease import Lease
from cluster.spawn import (
    FENCE_SIGNAL,
    LONGEST_MODULE,
    MODULE_AT,
    PRELOAD_MODULE,
    PRELOAD_VARIABLE,
    WorkerOptions,
)

_DEADLINE = struct.Struct("=d")
_STARTING = threading.Lock()
_of_thread = threading.local()


def _connect_to_new_process(fds: list[int]) -> tuple[int, int]:
    pair: tuple[int, int] = _of_thread.server.connect_to_new_process(fds)
    return pair


forkserver.connect_to_new_process = _connect_to_new_process


class _Server(forkserver.ForkServer):  # type: ignore[misc] # multiprocess has no types
    """Hands its plan to each process that it starts: they inherit the environment."""

    plan = ""

    def ensure_running(self) -> None:
        with _STARTING:
            os.environ[PRELOAD_VARIABLE] = self.plan
            super().ensure_running()


class Forkserver:
    """A context that forks workers from a process which has imported the job modules."""

    def __init__(self, options: WorkerOptions, processes: int) -> None:
        self.context: Any = multiprocess.get_context("forkserver")
        self.preloads = True
        """Job modules are imported once, in the forkserver; False: in every worker, since importing them starts threads."""
        self._server = _Server()
        self._server.set_forkserver_preload([PRELOAD_MODULE])
        self.threads = ThreadPoolExecutor(processes, "start", self._enter_thread)
        """Where processes are started: that waits for the forkserver's imports, for which nothing else should wait."""
        self._options = options
        self._lease: Lease | None = None
        self._up: int | None = None
        """Pid of the forkserver that is known to listen to signals: before, FENCE_SIGNAL would end it."""
        self._memory = os.memfd_create("jobcluster-fence") if sys.platform == "linux" else -1
        self._write(0.0)
        self._plan()

    @property
    def pid(self) -> int | None:
        """None: not started yet."""
        pid: int | None = self._server._forkserver_pid
        return pid

    def fence(self, lease: Lease) -> None:
        """The kernel is to end it, and all workers with it, when this lease can no longer be trusted."""
        self._lease = lease
        self._write(0.0 if lease.ended else lease.fence_at)
        if self._up is not None and self._up == self.pid and self._memory >= 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._up, FENCE_SIGNAL)

    def forked(self, pid: int | None) -> None:
        """It has started a worker, so it is itself up: it is told again what it may have missed while starting."""
        if self._up != pid:
            self._up = pid
            if self._lease is not None:
                self.fence(self._lease)

    @property
    def importing(self) -> str:
        """The job module that it imports, or imported last; empty: it has begun with none."""
        raw = os.pread(self._memory, LONGEST_MODULE, MODULE_AT) if self._memory >= 0 else b""
        return raw.rstrip(b"\0").decode(errors="replace")

    @property
    def has_ended(self) -> bool:
        """Its end ends its workers. For a moment it is a zombie; whoever has waited for it has found it ended."""
        return self.pid is not None and has_ended(self.pid)

    def kill(self) -> None:
        """It hangs in an import. The next worker starts another."""
        if self.pid is not None and not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def stop_preloading(self) -> None:
        """Starts it anew without the job modules: forking a process with threads is not safe."""
        self.preloads = False
        self._plan()
        self._server._stop()

    def stop(self) -> None:
        """For good: no worker of it is left. Waits for its end, a moment."""
        self._server._stop()
        self.threads.shutdown(wait=False)
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _enter_thread(self) -> None:
        """For what it starts: this is its forkserver, and a Ctrl-C is the coordinator's matter, until that ignores it."""
        _of_thread.server = self._server
        resource_tracker.ensure_running()  # starting it lets interrupts come in this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def _plan(self) -> None:
        memory = f"/proc/{os.getpid()}/fd/{self._memory}" if self._memory >= 0 else ""
        self._server.plan = json.dumps({
            "modules": self._options.modules if self.preloads else [],
            "app_dir": str(self._options.app_dir),
            "fence": memory,
        })  # fmt: skip

    def _write(self, deadline: float) -> None:
        if self._memory >= 0:
            os.pwrite(self._memory, _DEADLINE.pack(deadline), 0)


def has_ended(pid: int) -> bool:
    """Whether this child of ours has ended, a zombie included."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # somebody has waited for it
    except AttributeError:  # macOS: this can't be told
        return False
