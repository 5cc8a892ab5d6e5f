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
        self.ended = False
        """For good: this registration is never used again."""
        self._length = length
        self._renewed_at = sent_at
        self._session_lost_at: float | None = None

    @property
    def fence_at(self) -> float:
        """When this node's jobs must be dead, unless it has renewed."""
        by_lease = self._renewed_at + self._length * FENCE
        return by_lease if self._session_lost_at is None else min(by_lease, self._session_lost_at + GRACE / 2)

    @property
    def valid(self) -> bool:
        return not self.ended and boottime() < self.fence_at

    def renewed(self, sent_at: float) -> None:
        """Postgres has confirmed the renewal that was sent then."""
        self._renewed_at = sent_at
        self._session_lost_at = None

    def session_lost(self) -> None:
        """The server has closed the session, and a rescuer may have seen that: the jobs must be dead within half the grace."""
        if self._session_lost_at is None:
            self._session_lost_at = boottime()

    def server_down(self) -> None:
        """No server is there that a rescuer could have been connected to: nobody has seen the session end."""
        self._session_lost_at = None
