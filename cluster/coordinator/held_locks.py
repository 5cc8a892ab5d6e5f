"""Names who holds a lock of ours that only nodes should hold: every login of the database can, and jobs would wait in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cluster import locks, statements
from cluster.coordinator.job_types import JobType
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles

INTERVAL, LONGEST_INTERVAL = 1.5, 20.0
"""Seconds between looks. Named is who holds a lock at two of them, so within 5 s where up to nine nodes live."""
LOOKS_FOR = 4
"""Nodes that look so often; with more of them each looks less often until it sees something new: a look reads all locks of the
server."""
REASON = "table_lock_held"
TURNS = 0
_WHAT = {
    TURNS: "rows of cluster.turns: types with a limit may not begin",
    locks.DOORBELL: "the doorbell: nodes look by the clock",
    locks.NODE: "a node's sign of life: its end is noticed by its lease only",
}


class Held(NamedTuple):
    """kind: class of an advisory lock, or TURNS. key: oid of the job table; 0: it is not the matter of one table."""

    kind: int
    key: int
    pid: int
    role: str


class HeldLocks:
    """`tick` is one look. Shares the heartbeat's session, and only reads."""

    def __init__(
        self, session: Session, types: Sequence[JobType], troubles: Troubles, live_nodes: Callable[[], int]
    ) -> None:
        self._session = session
        self._types = types
        self._troubles = troubles
        self._live_nodes = live_nodes
        self._seen: set[Held] = set()
        self._named: set[str] = set()
        """Job types whose trouble it is."""

    async def tick(self) -> float:
        """Returns the seconds until the next look."""
        async with self._session.use(deadline=5) as connection:
            cursor = await connection.execute(
                statements.statement("list_held_locks"),
                {"doorbell": locks.DOORBELL, "node": locks.NODE},
            )
            seen = {Held(*row) for row in await cursor.fetchall()}
        self._name(seen & self._seen)
        is_new, self._seen = bool(seen - self._seen), seen
        return INTERVAL if is_new else min(LONGEST_INTERVAL, INTERVAL * max(1.0, self._live_nodes() / LOOKS_FOR))

    def _name(self, held: set[Held]) -> None:
        names = {job_type.oid: job_type.name for job_type in self._types if job_type.oid} | {0: "(node)"}
        named = set[str]()
        for lock in sorted(held, reverse=True):  # what says most comes last, and stays
            if lock.key in names:
                named.add(names[lock.key])
                who = f"role {lock.role}, server process {lock.pid}, holds"
                advice = f"SELECT pg_terminate_backend({lock.pid})"
                self._troubles.begin(self, names[lock.key], REASON, f"{who} {_WHAT[lock.kind]}; {advice}")
        for name in self._named - named:
            self._troubles.end(self, name, REASON)
        self._named = named
