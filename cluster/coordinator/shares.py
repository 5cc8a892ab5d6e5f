"""How many jobs of a limited type one node may have at once: its share of the limit, and more only if the others leave it.

Without this a node that has all the places of a limit would keep them, since it hears of an ended job first. Pure; a limit is
kept by the claims, not here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

PATIENCE = 0.05
"""Seconds for which a node that has its share leaves room to others: some of their round trips."""
SHORTEST_ALONE, LONGEST_ALONE = 1.0, 8.0
"""Seconds for which it takes all there is once nobody else has wanted it; doubled each time."""


class Alone(NamedTuple):
    """No other node wants what this one leaves. until: CLOCK_MONOTONIC seconds; length: in seconds."""

    until: float
    length: float


class Share:
    """Of one type's limit. live_nodes: how many nodes there are, this one included.

    held: counts the jobs of the type that are running because of this node, where that matters.
    """

    def __init__(self, live_nodes: Callable[[], int]) -> None:
        self._live_nodes = live_nodes
        self._left_at: float | None = None
        """CLOCK_MONOTONIC seconds since when room is left to others; None: it is not."""
        self._alone: Alone | None = None

    def exceeded(self, limit: int, held: Callable[[], int]) -> bool:
        """Whether this node has more than its share, and others may want it."""
        return not self._takes_all() and held() > self._share(limit)

    def places(self, limit: int, held: Callable[[], int]) -> float:
        """How many more jobs this node may begin now. 0: others are to have what room there is, for `wait` seconds."""
        if self._takes_all():
            return math.inf
        places = self._share(limit) - held()
        if places > 0:
            return places
        now = time.monotonic()
        if self._left_at is None:
            self._left_at = now
        if now < self._left_at + PATIENCE:
            return 0
        self._left_at = None
        length = SHORTEST_ALONE if self._alone is None else min(LONGEST_ALONE, 2 * self._alone.length)
        self._alone = Alone(now + length, length)
        return math.inf

    def taken(self) -> None:
        """What was left to others, if something was, has been taken: there is no room, or no row that waits."""
        if self._left_at is not None:
            self._left_at = self._alone = None

    def wait(self) -> float:
        """Seconds until this node takes what it has left; infinite: it has left nothing."""
        return math.inf if self._left_at is None else max(0.0, self._left_at + PATIENCE - time.monotonic())

    def _share(self, limit: int) -> int:
        return math.ceil(limit / self._live_nodes())

    def _takes_all(self) -> bool:
        return self._live_nodes() <= 1 or (self._alone is not None and time.monotonic() < self._alone.until)
