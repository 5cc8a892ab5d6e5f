"""Finds nodes that are lost, closes them, and takes their jobs back.

Two steps, in two transactions: a claim that is still open is invisible to a statement that began before it committed. First
the node's row is locked, which waits for its open claims, and set to lost: from then on it can neither renew nor claim. Then
its jobs go back, table by table; what is wrong with one table or row leaves the others alone. Watches on the heartbeat's session;
writes on the finish session.
"""

from __future__ import annotations

import collections
import math
import random
import time
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from cluster import events, locks, statements
from cluster.coordinator import pipeline
from cluster.coordinator.arrays import BigIntegers
from cluster.coordinator.causes import WHY_HELD, Cause, brief, cause_of
from cluster.coordinator.lease import GRACE
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.refusal import ROWS_OWN, is_lost, search
from cluster.coordinator.session import Session
from cluster.coordinator.survey import ask_each
from cluster.coordinator.trouble import Hold, Pace, RowsAside, Troubles
from cluster.lease_clock import boottime

LOOK_INTERVAL, LONGEST_LOOK_INTERVAL = 0.6, 10.0
LOOKS_FOR = 4
"""Nodes that look once a second each; with more of them each looks less often, since a look reads all nodes: the first to see that
one is gone is soon, and looks again when it may be taken for lost."""
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
    lease: float
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

    def next_end(self, now: float) -> float:
        """When the grace of a session that was seen to end is over, or the lease of a node that does not renew; infinity: never."""
        graces = [record.free_since + GRACE for record in self._records.values() if record.free_since is not None]
        leases = [record.since + record.lease + MARGIN for record in self._records.values()]
        return min([*graces, *(end for end in leases if end > now)], default=math.inf)

    def _is_lost(self, sighting: Sighting, now: float) -> bool:
        record = self._records.get(sighting.node)
        if record is None or record.heartbeat != sighting.heartbeat:
            # What another session of the node held says nothing: that one may have ended while the node lives.
            was_held = record is not None and record.was_held and record.session == sighting.session
            self._records[sighting.node] = _Record(
                sighting.heartbeat, now, sighting.lease, sighting.session, sighting.held or was_held
            )
            return False
        if sighting.held:
            record.was_held, record.free_since = True, None
        elif record.was_held and record.free_since is None:
            record.free_since = now
        ended = record.free_since is not None and now - record.free_since >= GRACE
        return ended or now - record.since > sighting.lease + MARGIN


def look_interval(nodes: int) -> float:
    """Seconds between two looks of each of so many nodes."""
    return min(LONGEST_LOOK_INTERVAL, max(LOOK_INTERVAL, nodes / LOOKS_FOR))


def sweep_pause(took: float, nodes: int) -> float:
    """Seconds until the next sweep of a node, after one that took so long."""
    return min(LONGEST_SWEEP_INTERVAL, max(SWEEP_INTERVAL, took / SWEEP_SHARE)) * nodes


class _Orphan(NamedTuple):
    """A running row whose node is gone. node None: it has none; lost: that node was lost, it has not stopped."""

    id: int
    node: UUID | None
    lost: bool


class _Table:
    """One job table, with or without a class on this node."""

    def __init__(self, troubles: Troubles, name: str) -> None:
        self.job_type = name
        self.hold = Hold(troubles, name)
        """It can't be asked, or refuses as a whole."""
        self.pace = Pace(BATCH)
        self.aside = RowsAside(troubles, name, "rescue_refused")
        self.address: tuple[str, str] = ("", "")
        self.most: dict[str, int] = {}
        """Attempts and crashes that a job may have."""

    def statement(self, name: str) -> bytes:
        return statements.for_table(name, self.address)


class Rescuer:
    """`tick` is one look at the other nodes."""

    def __init__(self, watching: Session, writing: Session, troubles: Troubles) -> None:
        self.wakeup = Wakeup()
        self.live_nodes = 1
        """This one included, when last seen."""
        self._watching = watching
        self._writing = writing
        self._troubles = troubles
        self._observer = Observer()
        self._seen_by: AsyncConnection[Any] | None = None
        self._next_sweep = 0.0
        self._not_closed: set[UUID] = set()
        """Nodes that are lost, but whose rows could not be closed yet."""
        self._tables: dict[str, _Table] = {}

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
        heartbeats = {sighting.node: sighting.heartbeat for sighting in sightings}
        self._not_closed &= heartbeats.keys()
        for node in self._observer.lost(sightings, boottime()):
            await self._close(node, heartbeats[node])
        if boottime() >= self._next_sweep:
            began, due = boottime(), 0.0
            self._next_sweep = math.inf  # what is asked for from now on, this sweep may miss
            try:
                again_in = await self._sweep()
                pause = sweep_pause(boottime() - began, self.live_nodes) * random.uniform(0.5, 1.5)
                due = boottime() + min(pause, again_in)
            finally:
                self._next_sweep = min(self._next_sweep, due)
        now = boottime()
        return min(
            look_interval(self.live_nodes) * random.uniform(0.75, 1.25),
            max(LOOK_INTERVAL, self._next_sweep - now),
            max(0.05, self._observer.next_end(now) - now),
        )

    async def _close(self, node: UUID, heartbeat: object) -> None:
        """If it can't be closed now, since a claim of its is still open or somebody holds its row, the next look tries again."""
        try:
            async with self._writing.use() as connection:
                cursor = await connection.execute(
                    statements.statement("close_node"), {"id": node, "heartbeat_at": heartbeat}
                )
                row = await cursor.fetchone()
        except psycopg.Error as error:
            if node not in self._not_closed:
                events.node_not_closed(str(node), error)
            self._not_closed.add(node)
            return
        self._next_sweep = 0.0  # until one has succeeded: nobody else is told of this node
        if row is not None:
            events.node_lost(str(node), row[0])

    # --- the sweep ---

    async def _sweep(self) -> float:
        """Takes back every running job whose node is neither live nor draining, of every job table there is.

        Returns in how many seconds a table that was locked, or has more, is to be tried again; infinite: none is.
        """
        tables = await self._list_tables()
        asked = [table for table in tables if table.hold.is_over]
        orphans = await self._list_orphans(asked)
        if orphans:
            all_known = len(asked) == len(tables) and not any(table.hold.until for table in tables)
            crashed = await self._list_crashed(orphans, all_known=all_known)
            for table, found in orphans.items():
                async with self._writing.use() as connection:
                    await self._rescue(connection, table, found, crashed)
        if any(len(found) >= table.pace.rows and table.hold.is_over for table, found in orphans.items()):
            return 0.0
        held = [table.hold.until - time.monotonic() for table in tables if not table.hold.is_over]
        return max(0.0, min(held, default=math.inf))

    async def _list_crashed(self, orphans: dict[_Table, list[_Orphan]], *, all_known: bool) -> list[UUID]:
        """Nodes that were lost with a single job, and may have died of it.

        Whoever looks first says how many they were; later looks see fewer. all_known: every table was asked, or nobody can tell.
        """
        jobs = collections.Counter(orphan.node for found in orphans.values() for orphan in found if orphan.lost)
        if not jobs:
            return []
        numbers = [number if all_known else max(2, number) for number in jobs.values()]
        async with self._writing.use() as connection:
            cursor = await connection.execute(
                statements.statement("count_lost_jobs"), {"id": list(jobs), "number": numbers}
            )
            return [node for node, lost_with in await cursor.fetchall() if lost_with == 1]

    async def _list_tables(self) -> list[_Table]:
        async with self._writing.use() as connection:
            rows = await (await connection.execute(statements.statement("list_rescuable_types"))).fetchall()
        names = {name for name, *_ in rows}
        for name in self._tables.keys() - names:
            self._tables.pop(name).hold.end()
        for name, schema, relation, max_attempts, max_crashes in rows:
            table = self._tables.setdefault(name, _Table(self._troubles, name))
            table.address = schema, relation
            table.most = {"max_attempts": max_attempts, "max_crashes": max_crashes}
        return list(self._tables.values())

    async def _list_orphans(self, tables: list[_Table]) -> dict[_Table, list[_Orphan]]:
        questions = {
            table: Command(
                table.statement("list_orphans"), {"limit": BATCH, "set_aside": BigIntegers(table.aside.ids())}
            )
            for table in tables
        }
        answers = await ask_each(self._writing, questions)
        for table, rows in answers.items():
            if not rows:
                table.hold.end()
        return {table: [_Orphan(*row) for row in rows] for table, rows in answers.items() if rows}

    async def _rescue(
        self, connection: AsyncConnection[Any], table: _Table, orphans: list[_Orphan], crashed: list[UUID]
    ) -> None:
        dead = list({orphan.node for orphan in orphans if orphan.node is not None})

        async def rescue(ids: list[int], how: str = "now", reason: str | None = None) -> int:
            parameters = {
                **table.most, "id": BigIntegers(ids), "dead": dead, "crashed": crashed, "how": how, "reason": reason,
            }  # fmt: skip
            (result,) = await pipeline.ask(connection, [Command(table.statement("rescue_jobs"), parameters)])
            rescued = [job_id for job_id, _ in pipeline.rows(pipeline.adapter_of(connection), result)]
            if rescued:
                events.rescued(table.job_type, len(rescued))
                table.aside.accepted(rescued)
            return len(rescued)

        async def otherwise(job_id: int, error: psycopg.Error) -> bool:
            """The row refuses to wait again: another one may be in its way. Its place under the limit must be free all the same."""
            reason = f"its node was lost, and the database refuses to let this job wait again: {brief(error)}"
            for how in ("later", "failed"):
                try:
                    await rescue([job_id], how, reason)
                except psycopg.Error as second:
                    if is_lost(connection, second):
                        raise
                else:
                    return True
            return False

        try:
            found = await search(connection, [orphan.id for orphan in orphans[: table.pace.rows]], rescue)
            for job_id, error in found.refused:
                if cause_of(error) not in ROWS_OWN or not await otherwise(job_id, error):
                    table.aside.add(job_id, brief(error))
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise
            table.hold.begin(WHY_HELD.get(cause_of(error), "table_refuses_rescue"), brief(error))
            return
        if found.fault is None:
            table.hold.end()
            table.pace.worked()
            return
        cause = cause_of(found.fault)
        if cause is not Cause.SLOW or not table.pace.too_slow():
            table.hold.begin(WHY_HELD.get(cause, "table_refuses_rescue"), brief(found.fault))
