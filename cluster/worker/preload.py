"""Imported by the forkserver before it forks its first worker: job modules are then shared pages, and a replacement worker
starts in milliseconds. An import that fails here is silent; the coordinator's own import has already reported it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

from cluster.spawn import LONGEST_MODULE, MODULE_AT, PRELOAD_VARIABLE
from cluster.worker.fence import start_death_timer

threads = 1
"""Threads of the forkserver after preloading. More than one: forking it is not safe."""


def _preload(plan: dict[str, Any]) -> int:
    from cluster.discovery import import_jobs  # only the forkserver pays for these
    from cluster.worker import main  # noqa: F401 - to share its pages

    signal.signal(signal.SIGUSR1, lambda *_: None)  # that the timer's time has moved; without timers it means nothing
    with contextlib.suppress(Exception):
        import_jobs(tuple(plan["modules"]), Path(plan["app_dir"]), partial(_tell, plan["fence"]))
    # Only now: while it imports nobody moves the timer, and there is no worker yet that it could end.
    start_death_timer(plan["fence"])
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every shared page
    return max(threading.active_count(), _kernel_threads())


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
