"""The clock that leases are counted on: CLOCK_BOOTTIME, which runs on while the host is suspended. Not comparable between hosts."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds since the host started."""
    return time.clock_gettime(_CLOCK)
