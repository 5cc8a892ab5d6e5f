"""What this process may use of its machine: in a container, or a unit of systemd with limits, less than all of it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

COORDINATOR_MEMORY = 128 * 2**20
"""Bytes that a coordinator and the process from which workers are forked may need, before the workers get their shares."""
LEAST_WORKER_MEMORY = 128 * 2**20
"""Bytes without which a worker process has too little for jobs."""
_ROOT = Path("/")


def available_cpus(root: Path = _ROOT) -> int:
    """CPUs this process may use: its affinity, or the cgroup's quota (v1 or v2) rounded up if that is less.

    The quota of every parent group counts too. `root` is where `/proc` and `/sys` are looked up.
    """
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _cpu_quotas(root))]))


def worker_processes(root: Path = _ROOT) -> int:
    """One for each CPU, and fewer where there is not memory enough for all of them."""
    limit = memory_limit(root)
    room = available_cpus(root) if limit is None else (limit - COORDINATOR_MEMORY) // LEAST_WORKER_MEMORY
    return max(1, min(available_cpus(root), room))


def worker_share(processes: int, root: Path = _ROOT) -> int | None:
    """Bytes for each of so many workers. None: nothing limits them, or they are too many for shares that they could keep to."""
    limit = memory_limit(root)
    share = (limit - COORDINATOR_MEMORY) // processes if limit is not None else 0
    return share if share >= LEAST_WORKER_MEMORY else None


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes at which the kernel ends processes of this cgroup (v1 or v2), or of a parent. None: at the machine's."""
    found = [
        int(text)
        for folder in _groups(root, "memory")
        for text in (_text(folder / "memory.max"), _text(folder / "memory.limit_in_bytes"))
        if text is not None and text.isdigit()
    ]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min((limit for limit in found if limit < machine), default=None)


def _cpu_quotas(root: Path) -> list[float]:
    pairs = map(_quota_and_period, _groups(root, "cpu"))
    return [int(quota) / int(period) for quota, period in pairs if quota.isdigit() and period.isdigit() and int(period)]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of its parents. Inside a container the path may be the host's: not all are there."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / (f"sys/fs/cgroup/{controller}" if controllers else "sys/fs/cgroup")
        group = Path(path.strip("/"))
        yield from (mount / group, *(mount / parent for parent in group.parents))


def _quota_and_period(group: Path) -> tuple[str, str]:
    quota, _, period = (_text(group / "cpu.max") or "").partition(" ")
    if quota:
        return quota, period
    return _text(group / "cpu.cfs_quota_us") or "", _text(group / "cpu.cfs_period_us") or ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
