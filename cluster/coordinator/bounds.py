"""Where looks at a table begin while whole ones are slow.

A held snapshot (a backup, a forgotten transaction) keeps the index entries of rows long claimed, and who looks for the first row
crosses them all. So a look begins where the one before found the first row: at a bound for each queue and priority. Rows that
appear behind a bound are not seen: of transactions that took longer than `settled` allows for, of other nodes' releases, of a
queue or priority not met before. So a whole look comes as often as it can without taking a tenth of the time, or every few
seconds; sooner if something rang; and always before a sleep. Pure: filled by looks.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from cluster.coordinator.arrays import Instant, Timestamps
from cluster.statements import Queue

SLOW = 0.005
"""Seconds that a whole look may take before bounds are used."""
INTERVAL, LONGEST_INTERVAL = 0.5, 5.0
"""Seconds between whole looks, at least and at most."""
SHARE, SHARE_WHEN_RUNG = 0.1, 0.5
"""Of the time, that whole looks may take."""
MOST_BOUNDS = 200
"""Of one table: more queues and priorities than that, and those that have no rows are forgotten."""


class Place(NamedTuple):
    """A queue (None: all but "default") and a priority."""

    queue: Queue
    priority: int


class Bound(NamedTuple):
    """No row of its place comes before it. run_at None: nothing is known."""

    run_at: Instant | None
    id: int


NOTHING_KNOWN = Bound(None, 0)


class Found(NamedTuple):
    """By a look. heads: the first row of each queue, or of each place that it began at. due_at: of the next row that is due.

    settled: every transaction that began before is taken to have ended. took: seconds.
    """

    heads: dict[Place, Bound]
    due_at: Instant | None
    settled: Instant
    took: float


class Bounds:
    """Of one table."""

    def __init__(self) -> None:
        self.places: dict[Place, Bound] = {}
        self.due_from: Instant | None = None
        """No scheduled row or retry is due before; None: nothing is known."""
        self._took = 0.0
        self._whole_at = 0.0
        self._share = 1.0
        """Of the time, that whole looks may take until the next one."""

    @property
    def used(self) -> bool:
        """The last whole look was slow."""
        return self._took > SLOW

    @property
    def is_rung(self) -> bool:
        """A whole look was asked for."""
        return self._share != SHARE

    def whole_in(self) -> float:
        """Seconds until the next look is to be whole; 0 or less: it is."""
        if not self.used or self._share == 1:
            return 0.0
        pause = self._took / self._share
        if not self.is_rung:
            pause = min(max(INTERVAL, pause), LONGEST_INTERVAL)
        return self._whole_at + pause - time.monotonic()

    def rung(self) -> None:
        """Something may have appeared that the next look does not see."""
        self._share = max(self._share, SHARE_WHEN_RUNG)

    def look_whole(self) -> None:
        """The next look must see everything."""
        self._share = 1.0

    def seen(self, found: Found, *, whole: bool) -> None:
        """What a look has found. Behind the best row of a queue, a whole look has seen nothing: that must be looked at anew."""
        if whole:
            self._took, self._whole_at, self._share = found.took, time.monotonic(), SHARE
            if not self.used:
                self.places, self.due_from = {}, None
                return
            if len(self.places) > MOST_BOUNDS:
                self.places = {}
        elif not found.heads:
            self.rung()  # there is time to look
        best = {place.queue: place.priority for place in found.heads} if whole else {}
        for place in {*self.places, *found.heads}:
            behind = place not in found.heads and place.priority > best.get(place.queue, place.priority)
            self.places[place] = NOTHING_KNOWN if behind else _bound(found.heads.get(place), found.settled)
        overdue = found.due_at is not None and found.due_at < found.settled
        self.due_from = found.due_at if overdue else found.settled

    def parameters(self) -> dict[str, Any]:
        """Of look_from_bounds."""
        return {
            "queue": [place.queue for place in self.places],
            "priority": [place.priority for place in self.places],
            "run_at": Timestamps(
                [None if at is None else at.to_bytes(8, "big", signed=True) for at, _ in self.places.values()]
            ),
            "id": [bound.id for bound in self.places.values()],
            "due_from": self.due_from,
        }

    def promoted(self) -> None:
        """Rows that were due have become claimable, which may be long before what is settled."""
        for place, bound in self.places.items():
            if self.due_from is None or (bound.run_at is not None and bound.run_at > self.due_from):
                self.places[place] = Bound(self.due_from, 0)


def _bound(head: Bound | None, settled: Instant) -> Bound:
    """Rows of transactions that have begun before `settled` are there; others may still come before the head."""
    if head is None or head.run_at is None or head.run_at >= settled:
        return Bound(settled, 0)
    return head
