"""This node's row in cluster.nodes: registered at start, renewed every few seconds, ended at the stop.

Owns the heartbeat connection, on which nothing runs that could wait for a lock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from cluster import events, metrics, statements
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.session import Session
from cluster.settings import Settings


class Load(NamedTuple):
    """What a node tells of itself with every heartbeat."""

    running: int
    slots: int
    listen_pid: int | None


class Heartbeat:
    """Keeps the node registered. registered: called with the node's id once it may claim."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        version: str,
        jobs: Sequence[str],
        load: Callable[[], Load],
        registered: Callable[[UUID], None],
    ) -> None:
        self.wakeup = Wakeup()
        self.node: UUID | None = None
        self.draining = False
        self.renewed_at = 0.0
        """CLOCK_MONOTONIC seconds of the last renewal that Postgres confirmed, taken before it was sent."""
        self._session = session
        self._settings = settings
        self._version = version
        self._jobs = list(jobs)
        self._load = load
        self._registered = registered
        metrics.heartbeat_age.set_function(lambda: time.monotonic() - self.renewed_at if self.renewed_at else 0.0)

    async def tick(self) -> float | None:
        """Registers, or renews. Returns the seconds until the next renewal."""
        sent_at = time.monotonic()
        async with self._session.use(deadline=self._settings.heartbeat_interval.total_seconds()) as connection:
            load = self._load()
            values: dict[str, Any] = {
                "lease": self._settings.lease, "running": load.running, "slots": load.slots,
                "session_pid": connection.info.backend_pid, "listen_pid": load.listen_pid, "draining": self.draining,
            }  # fmt: skip
            if self.node is None:
                await self._register(connection, values)
            else:
                cursor = await connection.execute(statements.statement("renew_lease"), {**values, "id": self.node})
                if await cursor.fetchone() is None:
                    events.lease_lost(str(self.node))
                    self.node = None
                    return 0
        self.renewed_at = sent_at
        return self._settings.heartbeat_interval.total_seconds()

    async def deregister(self) -> None:
        """The node has ended cleanly."""
        async with self._session.use() as connection:
            await connection.execute(statements.statement("deregister_node"), {"id": self.node})

    async def _register(self, connection: Any, values: dict[str, Any]) -> None:
        node = uuid4()  # new at every start: two containers may share hostname and pid
        await connection.execute(
            statements.statement("register_node"),
            {**values, "id": node, "hostname": socket.gethostname(), "pid": os.getpid(), "version": self._version,
             "queues": list(self._settings.queues), "jobs": self._jobs},
        )  # fmt: skip
        self.node = node
        self._registered(node)
