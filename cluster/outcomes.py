"""What `perform` may return to say how its job, or its schedule, goes on. Anything else is success, if a job has no schedule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from cluster.error_text import shorten


@dataclass(frozen=True)
class Snooze:
    """Run again after `delay`; this attempt is not counted."""

    delay: timedelta

    def __post_init__(self) -> None:
        given: object = self.delay
        if not isinstance(given, timedelta) or given < timedelta(0):
            raise ValueError(f"Snooze takes a timedelta of zero or more, not {self.delay!r}")


@dataclass(frozen=True)
class Cancel:
    """End the job as `cancelled`, without another attempt; `reason` becomes its last_error."""

    reason: str = "cancelled by the job itself"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", shorten(str(self.reason)))  # an exception, say, is a fair reason


@dataclass(frozen=True)
class Fail:
    """End the job as `failed`, without another attempt; `reason` becomes its last_error."""

    reason: str = "failed by the job itself"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", shorten(str(self.reason)))


class Next(Enum):
    """What a job of a schedule says of that; all are successes. A job without a schedule may say so too: nothing follows."""

    OK = "OK"
    """The schedule goes on."""
    SLEEP = "SLEEP"
    """It runs again 24 hours after the start of this run."""
    STOP = "STOP"
    """It stays active, but does not run again before a reload, or a start of the whole cluster."""
    EXIT = "EXIT"
    """It is deactivated."""
