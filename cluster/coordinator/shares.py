"""How many jobs of a limited type one node may have at once: its share of the limit, and more only if the others leave it.

Without this a node that has all the places of a limit would keep them, since it hears of an ended job first. Pure; a limit is
kept by the claims, not here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

PATIENCE = 0.05
"""Seconds for which a node that has its share leaves room to others: some of their round trips."""
SHORTEST_ALONE, LONGEST_ALONE = 1.0, 8.0
"""Seconds for which it takes all there is once nobody else has wanted it; doubled each time."""


class Alone(NamedTuple):
    """No other node wants what this one leaves. until: CLOCK_MONOTONIC seconds; length: in seconds."""

    until: float
    length: float


class Shares:
    """Of the limits that this node has jobs under. live_nodes: how many nodes there are, this one included.

    Types are given by index; held: counts the jobs of the type that are running because of this node, where that matters.
    """

    def __init__(self, live_nodes: Callable[[], int]) -> None:
        self._live_nodes = live_nodes
        self._left_at: dict[int, float] = {}
        """CLOCK_MONOTONIC seconds since when room is left to others, by type."""
        self._alone: dict[int, Alone] = {}

    def exceeded(self, index: int, limit: int, held: Callable[[], int]) -> bool:
        """Whether this node has more than its share, and others may want it."""
        return not self._takes_all(index) and held() > self._share(limit)

    def places(self, index: int, limit: int, held: Callable[[], int]) -> float:
        """How many more jobs this node may begin now. 0: others are to have what room there is, for `wait` seconds."""
        if self._takes_all(index):
            return math.inf
        places = self._share(limit) - held()
        if places > 0:
            return places
        now = time.monotonic()
        if now < self._left_at.setdefault(index, now) + PATIENCE:
            return 0
        del self._left_at[index]
        length = min(LONGEST_ALONE, 2 * self._alone[index].length) if index in self._alone else SHORTEST_ALONE
        self._alone[index] = Alone(now + length, length)
        return math.inf

    def keep(self, indexes: Iterable[int]) -> None:
        """Only these types have room and rows that wait: what was left of others has been taken."""
        for index in self._left_at.keys() - set(indexes):
            del self._left_at[index]
            self._alone.pop(index, None)

    def wait(self) -> float:
        """Seconds until this node takes the first of what it has left; infinite: it has left nothing."""
        return max(0.0, min(self._left_at.values(), default=math.inf) + PATIENCE - time.monotonic())

    def _share(self, limit: int) -> int:
        return math.ceil(limit / self._live_nodes())

    def _takes_all(self, index: int) -> bool:
        return self._live_nodes() <= 1 or (index in self._alone and time.monotonic() < self._alone[index].until)
