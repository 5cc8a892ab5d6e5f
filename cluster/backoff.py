"""How long a failed job waits before its next attempt. Pure functions of the attempt number; no I/O."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias


class BackoffProtocol(Protocol):
    """From the number of the attempt that failed (the first is 1) to the wait before the next one."""

    def __call__(self, attempt: int, /) -> timedelta: ...


# Type checkers take a Callable in a class for a method; the protocol lets objects in, `...` plain functions.
Backoff: TypeAlias = BackoffProtocol | Callable[..., timedelta]

LONGEST = timedelta(days=1)
"""Cap of the growing strategies unless told otherwise: a broken dependency is noticed within a day of its repair."""


LONGEST_DELAY = timedelta(days=36_525).total_seconds()
"""Seconds: a hundred years, and whatever is longer is cut to it, since not every date can be told to Postgres and to Python."""


def _checked(jitter: float, *durations: timedelta | None) -> None:
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter is a fraction from 0 to 1, not {jitter!r}")
    for duration in durations:
        given: object = duration  # callers without a type checker give anything
        if given is not None and not isinstance(given, timedelta):
            raise TypeError(f"a backoff takes a timedelta, such as timedelta(seconds=30), not {given!r}")
    if any(duration is not None and duration < timedelta(0) for duration in durations):
        raise ValueError("a backoff can't be negative")


@dataclass(frozen=True)
class ConstantBackoff:
    """The same `delay` after every failure.

    jitter: fraction of the delay that is random, 0 to 1; 0.2 waits 80 to 100 % of it.
    """

    delay: timedelta = timedelta(seconds=30)
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _checked(self.jitter, self.delay)

    def __call__(self, attempt: int) -> timedelta:
        return _jittered(self.delay.total_seconds(), self.jitter)


@dataclass(frozen=True)
class ExponentialBackoff:
    """`delay * factor ** (attempt - 1)`: 5 s and factor 2 give 5, 10, 20, 40 … up to `cap`."""

    delay: timedelta
    factor: float = 2.0
    cap: timedelta = LONGEST
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _checked(self.jitter, self.delay, self.cap)
        if self.factor < 1:
            raise ValueError("factor is at least 1; for a constant delay use ConstantBackoff")

    def __call__(self, attempt: int) -> timedelta:
        grown = _power(self.factor, attempt - 1) * self.delay.total_seconds()
        return _jittered(min(grown, self.cap.total_seconds()), self.jitter)


@dataclass(frozen=True)
class PolynomialBackoff:
    """`attempt ** power` seconds: power 4 gives 1, 16, 81, 256, 625 … up to `cap`."""

    power: float = 4.0
    cap: timedelta = LONGEST
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _checked(self.jitter, self.cap)

    def __call__(self, attempt: int) -> timedelta:
        return _jittered(min(_power(attempt, self.power), self.cap.total_seconds()), self.jitter)


LinearBackoff = ConstantBackoff
"""The name that IHP gives to a constant delay."""


def _jittered(seconds: float, jitter: float) -> timedelta:
    seconds = min(seconds, LONGEST_DELAY)  # timedelta.max, as seconds, is rounded to more than a timedelta can be
    return timedelta(seconds=seconds * random.uniform(1 - jitter, 1) if jitter else seconds)


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return 1e300  # infinity times a delay of zero would be no number


def seconds_after(backoff: Backoff, attempt: int) -> float:
    """The wait after this attempt, in seconds. A backoff that raises must not lose the job: the default steps in."""
    try:
        return min(LONGEST_DELAY, max(0.0, backoff(attempt).total_seconds()))
    except Exception:
        logging.getLogger("cluster").exception("backoff %r failed for attempt %s", backoff, attempt)
        return ConstantBackoff().delay.total_seconds()
