"""What a worker process is doing, in shared memory that outlives it.

Written by the worker, for every attempt; read by its coordinator, above all when the worker has died or hangs. The other way
goes what the worker must know while its loop stands still: that its job is to stop.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

_BEAT, _ON_STACK, _STOP_TICKET, _STOP_REASON, _FIRST_SLOT = range(5)
_TICKET, _BEGUN, _SLOT_SIZE = 0, 1, 2


STOP_REASONS = ("timed_out", "cancelled", "released")


class Note(NamedTuple):
    """An attempt in progress. ticket: of its claim, see frames; begun: CLOCK_MONOTONIC seconds."""

    ticket: int
    begun: float


def notes_size(slots: int) -> int:
    """Length of the array of 64-bit integers that Notes needs."""
    return _FIRST_SLOT + _SLOT_SIZE * slots


class Notes:
    """Attempts in progress by slot, which of them is on the stack, and when the worker's loop last turned."""

    def __init__(self, array: Any, slots: int) -> None:
        self._array = array
        self._slots = slots

    def begin(self, slot: int, ticket: int, begun: float) -> None:
        """The ticket, which is never 0, is written last and cleared first: a reader that sees it sees the rest."""
        place = _FIRST_SLOT + _SLOT_SIZE * slot
        self._array[place + _BEGUN] = int(begun * 1e9)
        self._array[place + _TICKET] = ticket

    def end(self, slot: int) -> None:
        self._array[_FIRST_SLOT + _SLOT_SIZE * slot + _TICKET] = 0

    def enter(self, slot: int) -> None:
        """The attempt in this slot has the loop's thread from now on."""
        self._array[_ON_STACK] = slot + 1

    def leave(self) -> None:
        self._array[_ON_STACK] = 0

    def beat(self) -> None:
        self._array[_BEAT] = time.monotonic_ns()

    def ask_to_stop(self, ticket: int, reason: str) -> None:
        """By the coordinator. Only one attempt at a time can be asked this way."""
        self._array[_STOP_REASON] = STOP_REASONS.index(reason)
        self._array[_STOP_TICKET] = ticket

    def asked_to_stop(self, ticket: int) -> str | None:
        """Why this attempt is to stop; None: it is not."""
        return STOP_REASONS[self._array[_STOP_REASON]] if self._array[_STOP_TICKET] == ticket else None

    @property
    def last_beat(self) -> float:
        """CLOCK_MONOTONIC seconds; 0: the loop has not turned yet."""
        return float(self._array[_BEAT]) / 1e9

    def in_progress(self) -> list[Note]:
        return [note for slot in range(self._slots) if (note := self._note(slot)) is not None]

    def on_stack(self) -> Note | None:
        """The attempt that has the loop's thread; None: the loop itself has it, or attempts run in threads."""
        slot = self._array[_ON_STACK]
        return self._note(slot - 1) if 0 < slot <= self._slots else None  # job code could write anything there

    def _note(self, slot: int) -> Note | None:
        place = _FIRST_SLOT + _SLOT_SIZE * slot
        ticket, begun = self._array[place : place + _SLOT_SIZE]
        return Note(ticket, begun / 1e9) if ticket else None
