"""The outcomes of one job type that the database does not have yet: those that wait to be written, those that the claimer writes
with a claim, and those that were refused. Pure; the finisher and the claimer share it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from cluster.coordinator import arrays
from cluster.coordinator.claims import Claim, Outcome
from cluster.coordinator.trouble import Pause
from cluster.frames import ID, LOCKED_AT

MOST_TAKEN = 64
"""Successes that the claimer writes with a claim of a type without a limit: with more of them two connections are faster than one.
"""
MOST_REFUSED = 500
"""Outcomes of a type that may be kept because they are refused; with more of them nothing of the type is claimed."""


class Unwritten:
    """Outcomes of one type, each in one place only."""

    def __init__(self) -> None:
        self.pending: list[Outcome] = []
        """Nobody has begun to write them. Those at the front are tried first."""
        self.waits_until: float | None = None
        """CLOCK_MONOTONIC seconds until which the claimer has time to take what is pending; None: it is to be written now."""
        self.writing: list[Outcome] = []
        self.locked: list[tuple[float, list[Outcome]]] = []
        """Batches whose rows somebody has locked, with the time from which to try again."""
        self.refused: list[Outcome] = []
        """The database does not take them: tried again together, at growing intervals."""
        self.refused_pause = Pause()
        self._with_claimer: list[list[Outcome]] = []

    def __len__(self) -> int:
        batches = *(batch for _, batch in self.locked), *self._with_claimer
        return len(self.pending) + len(self.writing) + len(self.refused) + sum(map(len, batches))

    def all(self) -> Iterator[Outcome]:
        """Those being written included."""
        yield from self.pending
        yield from self.writing
        for _, batch in self.locked:
            yield from batch
        yield from self.refused
        for batch in self._with_claimer:
            yield from batch

    def claims(self) -> Iterator[Claim]:
        """Of all of them."""
        return (outcome.claim for outcome in self.all())

    @property
    def is_settled(self) -> bool:
        """Nothing is left but what the database refuses."""
        return not (self.pending or self.writing or self.locked or self._with_claimer)

    @property
    def is_ready(self) -> bool:
        """Something is to be written now."""
        return bool(self.pending) and (self.waits_until is None or time.monotonic() >= self.waits_until)

    # --- successes that the claimer writes with a claim ---

    @property
    def has_successes(self) -> bool:
        """Whether there is something to swap."""
        return any(outcome.is_plain_success for outcome in self.pending)

    def take_few_successes(self, node: UUID) -> list[Outcome]:
        """As `take_successes`, or none if there are many."""
        return self.take_successes(node) if len(self.pending) <= MOST_TAKEN else []

    def take_successes(self, node: UUID) -> list[Outcome]:
        """Those under this node's id; `give_back` must follow, unless there are none. What is left is to be written now."""
        taken = [o for o in self.pending if o.is_plain_success and o.claim.lease.node == node]
        if taken:
            self.pending = [o for o in self.pending if not o.is_plain_success or o.claim.lease.node != node]
            self._with_claimer.append(taken)
        self.waits_until = None
        return taken

    def give_back(self, taken: list[Outcome], *, written: bool) -> None:
        """The end of what was taken. Not written: some are lost or locked, or nobody knows; all are written here, once more."""
        self._with_claimer.remove(taken)
        if not written:
            self.pending += taken
            self.waits_until = None

    # --- trying again ---

    def take_back(self) -> None:
        """What was locked or refused long enough ago is pending again."""
        now = time.monotonic()
        for at, batch in self.locked:
            if at <= now:
                self.pending += batch
        self.locked = [(at, batch) for at, batch in self.locked if at > now]
        if self.refused and self.refused_pause.is_over:
            self.pending += self.refused
            self.refused = []

    def next_at(self) -> float:
        """CLOCK_MONOTONIC seconds when something is to be tried; infinite: nothing waits, or only for the claimer."""
        times = [at for at, _ in self.locked]
        if self.pending:
            times.append(self.waits_until or 0.0)
        if self.refused:
            times.append(self.refused_pause.until)
        return min(times, default=float("inf"))


def success_parameters(batch: list[Outcome]) -> dict[str, Any]:
    """Of finish_succeeded_jobs, and of the finishing half of swap_limited_jobs. All are of one node id."""
    return {
        "node": batch[0].claim.lease.node,
        "id": arrays.RawBigIntegers([outcome.claim.head[ID] for outcome in batch]),
        "locked_at": arrays.Timestamps([outcome.claim.head[LOCKED_AT] for outcome in batch]),
        "begun": arrays.Floats([max(0.0, outcome.begun - outcome.claim.claimed_at) for outcome in batch]),
    }
