"""How many CPUs this process may use: fewer than the machine has in a container with a quota."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may use: its affinity, or the cgroup's quota (v1 or v2) rounded up if that is less.

    The quota of every parent group counts too. `root` is where `/proc` and `/sys` are looked up.
    """
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> list[float]:
    quotas = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / ("sys/fs/cgroup/cpu" if controllers else "sys/fs/cgroup")
        group = Path(path.strip("/"))
        # Inside a container the path may be the host's: what is not there has no quota.
        for folder in (mount / group, *(mount / parent for parent in group.parents)):
            quota, period = _quota_and_period(folder)
            if quota.isdigit() and period.isdigit() and int(period):
                quotas.append(int(quota) / int(period))
    return quotas


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
