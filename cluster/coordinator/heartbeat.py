"""This node's row in cluster.nodes: registered at start, renewed every few seconds, ended at the stop; and its fence.

Owns the lease and the heartbeat connection, on which nothing runs that could wait for a lock. While that session lives, it
holds an advisory lock for the node: a rescuer that sees it freed need not wait for the lease to run out.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from cluster import events, locks, metrics, statements
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.lease_clock import boottime
from cluster.settings import Settings

RETRY = 0.25
"""Seconds between attempts to renew while Postgres can't be had: quick, since the lease runs."""
RENEWED_SOON = 0.5
"""Seconds after a renewal until a ring makes the next one."""
FENCE_CHECK = 0.5
"""Seconds between looks at the fence: less than half the grace, which is how suddenly it may come near."""


class Load(NamedTuple):
    """What a node tells of itself with every heartbeat."""

    running: int
    slots: int
    listen_pid: int | None
    trouble: list[dict[str, Any]]
    work: Jsonb
    """See Workload."""


class Heartbeat:
    """Keeps the node registered, and fences it when it can't be.

    registered: called with each new lease; renewed: whenever its fence has moved; fenced: when the jobs under it must die, now;
    deregistered: when the database knows that leases before have ended, so that their jobs can be taken back; told_to_drain: when
    people ask for that, and when they take it back.
    """

    def __init__(
        self,
        settings: Settings,
        version: str,
        code: str,
        jobs: Sequence[str],
        load: Callable[[], Load],
        registered: Callable[[Lease], None],
        renewed: Callable[[Lease], None],
        fenced: Callable[[Lease], None],
        deregistered: Callable[[], None],
        told_to_drain: Callable[[bool], None],
    ) -> None:
        self.wakeup = Wakeup()
        self.lease: Lease | None = None
        self.draining = False
        """The node stops."""
        self.is_told_to_drain = False
        """It claims nothing until people take that back, or it stops: also under the registrations to come."""
        self.session = Session(
            settings.read_direct_database_url,
            "heartbeat",
            setup=self._prepare,
            listening=self._session_says,
            sign_of_life=True,
        )
        self._settings = settings
        self._interval = settings.heartbeat_interval.total_seconds()
        self._version = version
        self._code = code
        self._jobs = list(jobs)
        self._load = load
        self._registered = registered
        self._renewed = renewed
        self._fenced = fenced
        self._deregistered = deregistered
        self._told_to_drain = told_to_drain
        self._soon: asyncio.TimerHandle | None = None
        """Will renew before it is time."""
        self._before: UUID | None = None
        """The last registration."""
        self._ended: list[UUID] = []
        """Node ids of leases that are over, until the database knows."""
        self._locked: tuple[AsyncConnection[Any], Lease] | None = None
        """Session and lease for which the node's lock is held."""
        self._renewed_at = 0.0
        metrics.heartbeat_age.set_function(lambda: boottime() - self._renewed_at if self._renewed_at else 0.0)

    async def run(self) -> None:
        """Lives until cancelled. The fence never waits for the database, so it has a task of its own."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._guard())

    def renew_soon(self) -> None:
        """Somebody may have said something. Anybody may ring, so not right after the last time."""
        if self._soon is None:
            wait = max(0.0, self._renewed_at + RENEWED_SOON - boottime())
            self._soon = asyncio.get_running_loop().call_later(wait, self._renew_now)

    def _renew_now(self) -> None:
        self._soon = None
        self.wakeup.set()

    async def deregister(self) -> None:
        """The node has ended cleanly."""
        if self.lease is not None:
            async with self.session.use(deadline=2) as connection:
                await connection.execute(statements.statement("deregister_node"), {"id": self.lease.node})

    # --- the loop ---

    async def _beat(self) -> None:
        away = False
        while True:
            try:
                await self._tick()
            except (TransientDatabaseError, psycopg.Error) as error:
                if not away:
                    events.database_away("heartbeat", error)
                away = True
                if isinstance(error, TransientDatabaseError):
                    self._after_failure(error)
                await asyncio.sleep(random.uniform(RETRY / 2, RETRY))
            else:
                if away:
                    events.database_back("heartbeat")
                away = False
                await self.wakeup.wait(self._interval if self.lease is not None else 0)

    async def _tick(self) -> None:
        """Registers, or renews."""
        sent_at = boottime()
        # Half the interval: one lost answer must not cost more than one heartbeat.
        async with self.session.use(deadline=max(1.0, self._interval / 2)) as connection:
            if self.lease is None:
                await self._register(connection, sent_at)
            else:
                await self._renew(connection, self.lease, sent_at)
            self._renewed_at = sent_at
            await self._hold_lock(connection)
            await self._deregister_ended(connection)

    async def _register(self, connection: AsyncConnection[Any], sent_at: float) -> None:
        lease = Lease(
            uuid4(), sent_at, self._settings.lease.total_seconds()
        )  # two containers may share hostname and pid
        await connection.execute(
            statements.statement("register_node"),
            {**self._values(), "id": lease.node, "hostname": socket.gethostname(), "pid": os.getpid(),
             "version": self._version, "code": self._code, "queues": list(self._settings.queues), "jobs": self._jobs,
             "before": self._before},
        )  # fmt: skip
        self.lease, self._before = lease, lease.node
        self._registered(lease)
        self._renewed(lease)

    async def _renew(self, connection: AsyncConnection[Any], lease: Lease, sent_at: float) -> None:
        cursor = await connection.execute(statements.statement("renew_lease"), {**self._values(), "id": lease.node})
        row = await cursor.fetchone()
        if row is None:
            events.lease_lost(str(lease.node), "another node has declared this one lost")
            self._fence(lease)
        elif not lease.ended:
            lease.renewed(sent_at)
            self._renewed(lease)
            self._hear(told_to_drain=row[0])
            self.session.let_go()

    def _hear(self, *, told_to_drain: bool) -> None:
        if told_to_drain != self.is_told_to_drain:
            self.is_told_to_drain = told_to_drain
            self._told_to_drain(told_to_drain)

    async def _deregister_ended(self, connection: AsyncConnection[Any]) -> None:
        """Their jobs are dead: nobody need wait for those leases."""
        if self._ended and self.lease is not None:
            for node in list(self._ended):
                await connection.execute(statements.statement("deregister_node"), {"id": node})
                self._ended.remove(node)
            self._deregistered()

    def _values(self) -> dict[str, Any]:
        load = self._load()
        return {
            "lease": self._settings.lease, "running": load.running, "slots": load.slots,
            "session_pid": self.session.pid, "listen_pid": load.listen_pid, "draining": self.draining,
            "trouble": Jsonb(load.trouble), "work": load.work,
        }  # fmt: skip

    # --- the session as a sign of life ---

    async def _prepare(self, connection: AsyncConnection[Any]) -> None:
        if self.session.pooled:
            events.without_direct_connection(
                "the heartbeat goes through a pooler: a dead node is found by its lease only"
            )
        else:
            await connection.execute("SET client_connection_check_interval = 0")
            # A closed socket frees the lock, silence never: the lease is for that.
            for name, value in (
                ("tcp_keepalives_idle", 120),
                ("tcp_keepalives_interval", 30),
                ("tcp_user_timeout", 300_000),
            ):
                await connection.execute(f"SET {name} = {value}")

    async def _hold_lock(self, connection: AsyncConnection[Any]) -> None:
        """Once in every session and lease. The session before may still have it: tried again with the next renewal."""
        if self.lease is None or self.session.pooled or self._locked == (connection, self.lease):
            return
        cursor = await connection.execute(
            "SELECT pg_try_advisory_lock(%s, hashtext(%s))", [locks.NODE, str(self.lease.node)]
        )
        if await cursor.fetchone() == (True,):
            self._locked = connection, self.lease

    def _session_says(self, connection: AsyncConnection[Any] | None) -> None:
        if connection is None:
            self.wakeup.set()  # renew at once; if that fails, _after_failure knows what may follow

    def _after_failure(self, error: TransientDatabaseError) -> None:
        """A rescuer may have seen the session end, unless the server is down altogether: then nobody sees anything."""
        if self.lease is not None and self.session.connected is None and not error.silent:
            if error.refused:
                self.lease.server_down()
            else:
                self.lease.session_lost()
            self._renewed(self.lease)

    # --- the fence ---

    async def _guard(self) -> None:
        while True:
            lease = self.lease
            if lease is not None and not lease.valid:
                events.lease_lost(str(lease.node), "it could not be renewed in time")
                self._fence(lease)
            left = FENCE_CHECK if lease is None else lease.fence_at - boottime()
            await asyncio.sleep(min(FENCE_CHECK, max(0.02, left)))

    def _fence(self, lease: Lease) -> None:
        """Ends this registration for good, jobs included; the next tick registers anew."""
        if not lease.ended:
            self._ended.append(lease.node)
        lease.ended = True
        if self.lease is lease:
            self.lease = None
        self._fenced(lease)
        self.wakeup.set()
