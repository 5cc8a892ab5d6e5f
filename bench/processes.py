"""CPU time and memory of process trees, read from /proc. Without /proc (macOS) they are unknown: None."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """In MiB."""

    pss: float
    """Pages that several processes share count once, divided among them."""
    private: float
    """Pages that this process alone has written."""


class _Stat(NamedTuple):
    parent: int
    cpu: float
    """Seconds, with those of children that have ended."""


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    return _descendants(pid, _all_stats())


def cpu_seconds(pid: int | None, *, only: bool = False) -> float | None:
    """User and system time of a process and its descendants, those that have ended included.

    only: of this process, without living descendants.
    """
    if pid is None or not PROC.exists():
        return None
    stats = _all_stats()
    if only:
        return stats[pid].cpu
    return sum(stats[member].cpu for member in _descendants(pid, stats))


def memory(*pids: int) -> Memory | None:
    """Of these processes together, without their descendants."""
    if not PROC.exists():
        return None
    found = [_memory(pid) for pid in pids]
    return Memory(sum(one.pss for one in found), sum(one.private for one in found))


def postmaster_of(backend_pid: int) -> int | None:
    """The parent of a backend; None: the server is on another machine, or in another container."""
    stat = _all_stats().get(backend_pid)
    if stat is None or "postgres" not in (PROC / str(backend_pid) / "comm").read_text():
        return None
    return stat.parent


def _descendants(pid: int, stats: dict[int, _Stat]) -> list[int]:
    found = [pid]
    for member in found:  # grows while it is walked
        found += [child for child, stat in stats.items() if stat.parent == member]
    return found


def _all_stats() -> dict[int, _Stat]:
    stats = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            # The second field, the name, may hold spaces and brackets.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        ticks = sum(map(int, fields[11:15]))
        stats[int(folder.name)] = _Stat(int(fields[1]), ticks / _TICKS)
    return stats


def _memory(pid: int) -> Memory:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return Memory(0, 0)  # it has just ended
    kibibytes = {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return Memory(kibibytes["Pss:"] / 1024, kibibytes["Private_Dirty:"] / 1024)
