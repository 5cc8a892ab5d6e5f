"""Finds nodes that are lost, closes them, and takes their jobs back.

Two steps, in two transactions: a claim that is still open is invisible to a statement that began before it committed. First
the node's row is locked, which waits for its open claims, and set to lost: from then on it can neither renew nor claim. Then
its jobs go back, table by table. Watches on the heartbeat's session; writes on the finish session.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, errors

from cluster import events, locks, statements
from cluster.coordinator.lease import GRACE
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.session import Session
from cluster.lease_clock import boottime

LOOK_INTERVAL, LONGEST_LOOK_INTERVAL = 0.6, 2.0
LOOKS_FOR = 4
"""Nodes that look once a second each; with more of them each looks less often: the first to see that one is gone is soon."""
SWEEP_INTERVAL = 5.0
"""Seconds between sweeps, by all nodes together, for running rows whose node is gone, however that came about."""
SWEEP_SHARE = 0.05
"""Of the time of the session, that sweeps may take while a held snapshot keeps the index entries of rows long finished."""
LONGEST_SWEEP_INTERVAL = 60.0
"""However slow they are: a network that is slow for a while must not keep jobs from being found for long."""
MARGIN = 1.0
BATCH = 1000


class Sighting(NamedTuple):
    """A node's row as a look finds it. heartbeat: compared for change only, never with a clock. lease: in seconds.

    session: pid of the node's heartbeat session; held: that very session holds the node's lock.
    """

    node: UUID
    heartbeat: object
    lease: float
    session: int | None
    held: bool


@dataclass
class _Record:
    heartbeat: object
    since: float
    session: int | None
    was_held: bool
    free_since: float | None = None


class Observer:
    """Decides who is lost from what one unbroken session has seen. Pure: times are given, CLOCK_BOOTTIME seconds."""

    def __init__(self) -> None:
        self._records: dict[UUID, _Record] = {}

    def forget(self) -> None:
        """The session was made anew: everybody's count begins anew, so nobody is rescued right after Postgres was away."""
        self._records.clear()

    def lost(self, sightings: list[Sighting], now: float) -> list[UUID]:
        """Nodes that have not renewed for a whole lease, or whose session was seen to end and that gave no sign of life since."""
        self._records = {node: record for node, record in self._records.items() if node in {s.node for s in sightings}}
        return [sighting.node for sighting in sightings if self._is_lost(sighting, now)]

    def next_end(self) -> float:
        """When the grace of a session that was seen to end is over; infinity: there is none."""
        ends = [record.free_since + GRACE for record in self._records.values() if record.free_since is not None]
        return min(ends, default=math.inf)

    def _is_lost(self, sighting: Sighting, now: float) -> bool:
        record = self._records.get(sighting.node)
        if record is None or record.heartbeat != sighting.heartbeat:
            # What another session of the node held says nothing: that one may have ended while the node lives.
            was_held = record is not None and record.was_held and record.session == sighting.session
            self._records[sighting.node] = _Record(sighting.heartbeat, now, sighting.session, sighting.held or was_held)
            return False
        if sighting.held:
            record.was_held, record.free_since = True, None
        elif record.was_held and record.free_since is None:
            record.free_since = now
        ended = record.free_since is not None and now - record.free_since >= GRACE
        return ended or now - record.since > sighting.lease + MARGIN


def sweep_pause(took: float, nodes: int) -> float:
    """Seconds until the next sweep of a node, after one that took so long."""
    return min(LONGEST_SWEEP_INTERVAL, max(SWEEP_INTERVAL, took / SWEEP_SHARE)) * nodes


class Rescuer:
    """`tick` is one look at the other nodes. own: this node's id, None: not registered at the moment."""

    def __init__(self, watching: Session, writing: Session) -> None:
        self.wakeup = Wakeup()
        self.live_nodes = 1
        """This one included, when last seen."""
        self._watching = watching
        self._writing = writing
        self._observer = Observer()
        self._seen_by: AsyncConnection[Any] | None = None
        self._next_sweep = 0.0

    def sweep_soon(self) -> None:
        """Some node is known to hold nothing any more: there may be jobs to take back."""
        self._next_sweep = 0.0
        self.wakeup.set()

    async def tick(self) -> float | None:
        """Returns the seconds until the next look."""
        async with self._watching.use(deadline=5) as connection:
            if self._seen_by is not connection:
                self._observer.forget()
                self._seen_by = connection
            cursor = await connection.execute(statements.statement("list_live_nodes"), {"class": locks.NODE})
            sightings = [Sighting(*row) for row in await cursor.fetchall()]
        self.live_nodes = max(1, len(sightings))
        lost = self._observer.lost(sightings, boottime())
        for node in lost:
            self._next_sweep = 0.0  # until one has succeeded: nobody else is told of this node
            await self._close(node, next(s.heartbeat for s in sightings if s.node == node))
        if boottime() >= self._next_sweep:
            began, due = boottime(), 0.0
            self._next_sweep = math.inf  # what is asked for from now on, this sweep may miss
            try:
                await self._sweep()
                due = boottime() + sweep_pause(boottime() - began, self.live_nodes) * random.uniform(0.5, 1.5)
            finally:
                self._next_sweep = min(self._next_sweep, due)
        interval = min(LONGEST_LOOK_INTERVAL, max(LOOK_INTERVAL, self.live_nodes / LOOKS_FOR))
        return min(interval * random.uniform(0.75, 1.25), max(0.05, self._observer.next_end() - boottime()))

    async def _close(self, node: UUID, heartbeat: object) -> None:
        async with self._writing.use() as connection:
            cursor = await connection.execute(
                statements.statement("close_node"), {"id": node, "heartbeat_at": heartbeat}
            )
            row = await cursor.fetchone()
        if row is not None:
            events.node_lost(str(node), row[0])

    async def _sweep(self) -> None:
        """Takes back every running job whose node is neither live nor draining, of every job table there is."""
        async with self._writing.use() as connection:
            types = await (await connection.execute(statements.statement("list_rescuable_types"))).fetchall()
        for name, schema, table, max_attempts in types:
            rescue = statements.for_table("rescue_jobs", (schema, table))
            rescued = BATCH
            while rescued == BATCH:
                try:
                    async with self._writing.use() as connection:
                        cursor = await connection.execute(rescue, {"limit": BATCH, "max_attempts": max_attempts})
                        rescued = cursor.rowcount
                except (errors.UndefinedTable, errors.UndefinedColumn):
                    break  # dropped since it was listed
                except errors.DatabaseError as error:
                    events.rescue_refused(name, error)
                    break
                if rescued > 0:
                    events.rescued(name, rescued)
