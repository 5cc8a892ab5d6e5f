"""How long this node may believe that its claims are its own. Pure; times are CLOCK_BOOTTIME, which runs on in suspend.

Nobody trusts wall clocks: a lease is counted from before its renewal was sent, on this host's own clock.
"""

from __future__ import annotations

from uuid import UUID

from cluster.lease_clock import boottime

FENCE = 0.8
"""Part of the lease after which a node that could not renew stops its own jobs: well before anybody may rescue them."""
GRACE = 3.0
"""Seconds for which a rescuer that saw a node's session end waits for a sign of life."""


class Lease:
    """One registration of a node. Written by the heartbeat; everybody else asks `valid` or reads `fence_at`."""

    def __init__(self, node: UUID, sent_at: float, length: float) -> None:
        """sent_at: just before the registration was sent. length: seconds of the lease."""
        self.node = node
        self.length = length
        self.fence_at = sent_at + length * FENCE
        """When this node's jobs must be dead, unless it has renewed."""
        self.ended = False
        """For good: this registration is never used again."""

    @property
    def valid(self) -> bool:
        return not self.ended and boottime() < self.fence_at

    def renewed(self, sent_at: float) -> None:
        """Postgres has confirmed the renewal that was sent then."""
        self.fence_at = sent_at + self.length * FENCE

    def session_lost(self) -> None:
        """A rescuer may have seen the session end: without a renewal within half the grace the jobs must be dead."""
        self.fence_at = min(self.fence_at, boottime() + GRACE / 2)
