"""What a coordinator needs to start worker processes without importing their code: options, entry, and the name to preload."""

from __future__ import annotations

import importlib
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cluster.job_shape import Shape

PRELOAD_MODULE = "cluster.worker.preload"
PRELOAD_VARIABLE = "_JOBCLUSTER_PRELOAD"
"""Environment variable that tells the forkserver what to import: {"modules": [...], "app_dir": "..."} as JSON."""
MODULE_AT, LONGEST_MODULE = 8, 200
"""Where in the memory that the coordinator shares with its forkserver the name of the module lies that is being imported; before it
is the time at which the forkserver is to end."""

# Real-time signals where there are some, since libraries take the others.
_REAL_TIME: int | None = getattr(signal, "SIGRTMAX", None)
FENCE_SIGNAL: int = _REAL_TIME or signal.SIGUSR1
"""To the forkserver: the time at which it is to end has moved."""
STOP_SIGNAL: int = _REAL_TIME - 1 if _REAL_TIME else signal.SIGUSR2
"""To a worker: its notes say which job of its main thread is to stop, and why."""
STACK_SIGNAL: int = _REAL_TIME - 2 if _REAL_TIME else signal.SIGUSR1
"""To a worker that was given a file: it writes there what its threads are doing, whatever that is."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker process is told at its start. Plain data: it is pickled.

    jobs: the classes in the order in which frames number them. parent: pid of the coordinator. stacks: file for the stacks of its
    threads; empty: none.
    """

    modules: tuple[str, ...]
    app_dir: Path
    jobs: tuple[Shape, ...]
    slots: int
    log_format: Literal["console", "json"]
    log_level: str
    parent: int
    stacks: str


def worker(options: WorkerOptions, connection: socket.socket, array: Any) -> None:
    """Target of a worker process; array: shared memory for its notes."""
    importlib.import_module("cluster.worker.main").main(options, connection, array)
