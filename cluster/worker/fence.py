"""The forkserver's death timer: what ends a node's jobs when its coordinator can't, being stopped or frozen itself.

The kernel kills the forkserver when the lease's fence passes, and by their parent-death signal all workers with it, whatever
they are doing and even while they are stopped. Every renewal moves the timer: the coordinator writes the new time into shared
memory and sends FENCE_SIGNAL, whose handler runs in the forkserver's only thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from cluster.spawn import FENCE_SIGNAL

_TIMER_ABSTIME = 1
_DEADLINE = struct.Struct("=d")


class _SignalEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * 48),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class DeathTimer:
    """SIGKILL to this process at a CLOCK_BOOTTIME time that another process sets. Linux only."""

    def __init__(self, memory: Path) -> None:
        """memory: file of 8 bytes, the time as a native double; 0: no timer."""
        with memory.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _DEADLINE.size)
        self._libc = _library()
        self._timer = ctypes.c_void_p()
        event = _SignalEvent(None, signal.SIGKILL, 0)
        if self._libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            raise OSError(ctypes.get_errno(), "timer_create")

    def start(self) -> None:
        signal.signal(FENCE_SIGNAL, self._set)
        self._set()

    def _set(self, *_: object) -> None:
        (deadline,) = _DEADLINE.unpack(self._memory)
        if deadline <= time.clock_gettime(time.CLOCK_BOOTTIME):
            deadline = 0.0  # of a lease that is over: what runs under it is dead, and frames of it are refused
        spec = _TimerSpec(0, 0, int(deadline), int(deadline % 1 * 1e9))
        self._libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(spec), None)


def start_death_timer(memory: str) -> None:
    """In the forkserver, at its start. Where there are no such timers the coordinator alone fences."""
    if sys.platform == "linux" and memory:
        with contextlib.suppress(OSError, AttributeError):
            timer = DeathTimer(Path(memory))
            timer.start()
            _keep.append(timer)


_keep: list[DeathTimer] = []


def _library() -> Any:
    for name in (None, "librt.so.1"):
        library = ctypes.CDLL(name, use_errno=True)
        if hasattr(library, "timer_create"):
            return library
    raise OSError("no timer_create in the C library")


def end_with_parent() -> None:
    """In a worker: the kernel kills it when the forkserver ends, for whatever reason."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)
