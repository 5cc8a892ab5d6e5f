"""What passes between the parts of a coordinator for each job: the claim, and the outcome of its attempt."""

from __future__ import annotations

from typing import NamedTuple

from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.frames import LOCKED_AT, RawRow


class Claim(NamedTuple):
    """A row that this node has claimed, and under which lease.

    An id may come again while the attempt under the old claim still runs (DELETE and INSERT, TRUNCATE), so a claim is known by its
    id and its locked_at. head: the standard columns of the row; the others are not kept once a worker has them.
    claimed_at: CLOCK_MONOTONIC seconds, when the claim's answer came.
    """

    job_type: JobType
    id: int
    head: RawRow
    claimed_at: float
    lease: Lease

    @property
    def locked_at(self) -> bytes:
        """As the database sent it: 8 bytes."""
        return self.head[LOCKED_AT] or b""


class Outcome(NamedTuple):
    """How an attempt ended.

    status: for the row. outcome: for the metrics. delay: seconds from now until the next attempt, None: run_at stays. error: for
    last_error, None: that stays. attempts, crashes: changes of the counts. begun, ended: CLOCK_MONOTONIC seconds. said: see Report.
    """

    claim: Claim
    status: str
    outcome: str
    delay: float | None
    error: str | None
    attempts: int
    crashes: int
    begun: float
    ended: float
    said: str | None = None

    @property
    def is_plain_success(self) -> bool:
        """There is nothing to say but that it has succeeded."""
        return self.status == "succeeded" and self.said is None
