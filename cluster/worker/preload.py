"""Imported by the forkserver before it forks its first worker: job modules are then shared pages, and a replacement worker
starts in milliseconds. An import that fails here is silent; the coordinator's own import has already reported it.

When the coordinator is gone the forkserver ends, and takes with it what the jobs of its workers have started.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

from cluster.groups import children, end_group
from cluster.spawn import FENCE_SIGNAL, LONGEST_MODULE, MODULE_AT, PRELOAD_VARIABLE
from cluster.worker.fence import start_death_timer

threads = 1
"""Threads of the forkserver after preloading. More than one: forking it is not safe."""


def _preload(plan: dict[str, Any]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    from cluster.discovery import import_jobs  # only the forkserver pays for these
    from cluster.worker import main  # noqa: F401 - to share its pages
    from cluster.worker.job_metrics import report_values

    signal.signal(FENCE_SIGNAL, lambda *_: None)  # that the timer's time has moved; without timers it means nothing
    report_values()
    with contextlib.suppress(Exception):
        import_jobs(tuple(plan["modules"]), Path(plan["app_dir"]), partial(_tell, plan["fence"]))
    # Only now: while it imports nobody moves the timer, and there is no worker yet that it could end.
    start_death_timer(plan["fence"])
    atexit.register(_end_workers, os.getpid())
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every shared page
    return max(threading.active_count(), _kernel_threads())


def _end_workers(forkserver: int) -> None:
    """Their process groups: a program that a job has started does not end with its worker."""
    if os.getpid() == forkserver:  # a child that a job forked may come here too
        for pid in children(forkserver):
            end_group(pid)


def _tell(memory: str, module: str) -> None:
    """Says what is being imported, for the case that this never ends."""
    if memory:
        with Path(memory).open("r+b") as file:
            file.seek(MODULE_AT)
            file.write(module.encode()[:LONGEST_MODULE].ljust(LONGEST_MODULE, b"\0"))


def _kernel_threads() -> int:
    with contextlib.suppress(OSError):
        return len(list(Path("/proc/self/task").iterdir()))
    return 1


if PRELOAD_VARIABLE in os.environ:
    threads = _preload(json.loads(os.environ[PRELOAD_VARIABLE]))
