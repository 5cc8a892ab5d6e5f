"""Limits per key: what a claim of such a type must reach, and which keys may have room for rows that are parked.

A claim that meets a full key parks its rows. When a job ends on this node, its key goes to the next claim, which takes what is
parked; room that others leave is found by a sweep. Pure, and of one job type: its backlog asks for the sweep and tells the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.statements import Queue

SWEEP_INTERVAL = 1.0
"""Seconds between sweeps: the most that room which nobody told of is left unused."""
SWEEP_BATCH = 500
MOST_KEYS = 500
"""Keys that one claim looks after."""
LONGEST_REACH = 4000
"""Open rows that one claim may examine: those of full keys are parked, so the next claim need not."""


class ParkedKeys:
    """Keys, as text, that claims are to look after. queues: each that the node goes through."""

    def __init__(self, queues: Sequence[Queue]) -> None:
        self._keys: dict[Queue, set[str]] = {queue: set() for queue in queues}
        self._after: str | None = None
        """The key that the sweep has seen last; None: it begins anew."""
        self._sweep_at = 0.0
        self._reach = 0

    def add(self, keys: Iterable[str]) -> None:
        """These keys may have room."""
        new = list(keys)
        for waiting in self._keys.values():
            waiting.update(new)

    def waiting(self) -> list[Queue]:
        """Queues in which keys are to be looked after."""
        return [queue for queue, keys in self._keys.items() if keys]

    def some(self, queue: Queue) -> list[str]:
        """Keys for one claim."""
        return sorted(self._keys[queue])[:MOST_KEYS]

    def looked_after(self, queue: Queue, keys: list[str]) -> None:
        """A claim had these keys, and the lock."""
        self._keys[queue] -= set(keys)

    def reach(self, demand: int) -> int:
        """Open rows that a claim is to examine."""
        return max(demand, self._reach)

    def claimed(self, demand: int, rows: int) -> None:
        """What came of a claim that had the lock: when full keys are in the way, the next one reaches further."""
        self._reach = min(LONGEST_REACH, 4 * max(self._reach, demand)) if rows < demand else 0

    # --- the sweep ---

    @property
    def is_sweep_due(self) -> bool:
        return time.monotonic() >= self._sweep_at

    def sweep_soon(self) -> None:
        """A limit or a pause has changed."""
        self._after, self._sweep_at = None, 0.0

    def sweeping(self) -> dict[str, Any]:
        """A sweep goes out: its parameters."""
        self._sweep_at = time.monotonic() + SWEEP_INTERVAL
        return {"after": self._after, "limit": SWEEP_BATCH}

    def swept(self, rows: Sequence[tuple[str, bool]]) -> None:
        """Its answer: keys, and whether each has room."""
        free = [key for key, has_room in rows if has_room]
        self.add(free)
        self._after = rows[-1][0] if len(rows) == SWEEP_BATCH else None
        if free and self._after is not None:
            self._sweep_at = 0.0
