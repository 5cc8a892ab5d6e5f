"""Imported by the forkserver before it forks its first worker: job modules are then shared pages, and a replacement worker
starts in milliseconds. An import that fails here is silent; the coordinator's own import has already reported it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
from pathlib import Path

VARIABLE = "_JOBCLUSTER_PRELOAD"
"""Set by the coordinator around the forkserver's start: {"modules": [...], "app_dir": "..."} as JSON."""

threads = 1
"""Threads of the forkserver after preloading. More than one: forking it is not safe."""


def _preload(plan: dict[str, object]) -> int:
    from cluster.discovery import import_jobs  # noqa: PLC0415 - only the forkserver pays for it
    from cluster.worker import main, runner  # noqa: F401, PLC0415 - to share their pages

    with contextlib.suppress(Exception):
        import_jobs(tuple(plan["modules"]), Path(str(plan["app_dir"])))  # type: ignore[arg-type]
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every shared page
    return max(threading.active_count(), _kernel_threads())


def _kernel_threads() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))
    return 1


if VARIABLE in os.environ:
    threads = _preload(json.loads(os.environ[VARIABLE]))
