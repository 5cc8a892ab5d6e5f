"""Looks where work waits: the best row of every queue of every job table, and when the next one is due. Takes nothing.

Called by the claimer, on its connection. Leaves out tables that are gone, or that somebody holds locked as a whole.
"""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection, errors
from psycopg.pq.abc import PGresult

from cluster.coordinator import pipeline
from cluster.coordinator.bounds import Bound, Bounds, Found, Place
from cluster.coordinator.job_types import JobType, resolve
from cluster.coordinator.parked import ParkedKeys
from cluster.coordinator.pipeline import Command

PROMOTE_BATCH = 1000
FRESH_FOR = 1.0
"""Seconds after which every table is looked at again, whatever the doorbell says: less than any sleep."""
LOCKED_OUT = 1.5
"""Seconds for which a table that somebody holds locked is left out."""


class Head(NamedTuple):
    """The best waiting row of one queue of one job type. run_at, id None: not known.

    limit: the type's; None: it has none, or one for each key. room: under that limit.
    """

    job_type: JobType
    queue: str
    priority: int
    run_at: datetime | None
    id: int | None
    limit: int | None
    room: int | None

    @property
    def has_room(self) -> bool:
        return self.room is None or self.room > 0


class View(NamedTuple):
    """What a look found.

    foreign: what stands for the row at the head of each queue that is not this node's, by type and queue; it changes with the row.
    limits: of the types that have one, by index. uncounted: those of them whose room is not known.
    due_in: seconds until the next row is due, by table, where there is one.
    """

    heads: list[Head]
    foreign: dict[tuple[int, str], str]
    limits: dict[int, int]
    uncounted: set[int]
    due_in: dict[int, float]


class Look(NamedTuple):
    """At one table. whole: from the start, not from bounds."""

    job_type: JobType
    whole: bool
    command: Command


class Seen(NamedTuple):
    """What the last look at one table, given by oid, has found. at, due_at: CLOCK_MONOTONIC seconds. The rest: see View."""

    table: int
    at: float
    whole: bool
    heads: list[Head]
    foreign: dict[tuple[int, str], str]
    limit: int | None
    due_at: float


class Looker:
    """Looks at the tables of these types. queues: those to look at; sweep: seconds between searches for tables come or gone."""

    def __init__(self, types: list[JobType], queues: tuple[str, ...], sweep: float) -> None:
        self.parked = ParkedKeys(None if "*" in queues else queues)
        self._types = types
        self._bounds = {job_type.index: Bounds() for job_type in types}
        self._seen: dict[int, Seen] = {}
        """By type."""
        self._busy_at: dict[int, float] = {}
        """CLOCK_MONOTONIC seconds when something was last found, by type."""
        self._queues = None if "*" in queues else frozenset(queues)
        self._sweep = sweep
        self._swept_at = -sweep

    async def sweep(self, connection: AsyncConnection[Any]) -> None:
        """Finds tables that have come, gone or been made anew since the last time, and parked rows that have room."""
        if time.monotonic() - self._swept_at > self._sweep:
            await resolve(connection, self._types)
            self._swept_at = time.monotonic()
        await self.parked.sweep(connection, self.present)

    def sweep_soon(self) -> None:
        self._swept_at = -self._sweep

    @property
    def present(self) -> list[JobType]:
        """Types whose table is there and can be read."""
        now = time.monotonic()
        return [job_type for job_type in self._types if job_type.oid and job_type.locked_until < now]

    # --- tables whose whole looks are slow, see bounds.py ---

    @property
    def is_fast(self) -> bool:
        """Whole looks at every table are fast."""
        return not any(bounds.used for bounds in self._bounds.values())

    def is_slow(self, job_type: JobType) -> bool:
        """Looks at it begin at bounds, and so must claims."""
        return self._bounds[job_type.index].used

    def rung(self) -> None:
        """Something may have come, in any place."""
        for bounds in self._bounds.values():
            bounds.rung()

    def look_whole(self) -> None:
        """The next look must see everything."""
        for bounds in self._bounds.values():
            bounds.look_whole()

    def whole_in(self) -> float:
        """Seconds until some table is due for a whole look because something rang; infinite: none is."""
        rung = (bounds.whole_in() for bounds in self._bounds.values() if bounds.used and bounds.is_rung)
        return min(rung, default=math.inf)

    # --- looks ---

    def looks(self, silent: set[int]) -> list[Look]:
        """At every table but for the silent ones, given by oid, where the last look has found nothing for this node."""
        return [
            self._look_at(job_type, whole=self._bounds[job_type.index].whole_in() <= 0)
            for job_type in self.present
            if job_type.oid not in silent or not self._is_empty(job_type)
        ]

    def _is_empty(self, job_type: JobType) -> bool:
        seen, now = self._seen.get(job_type.index), time.monotonic()
        if seen is None or seen.table != job_type.oid or seen.heads or not seen.whole:
            return False
        return now < seen.at + FRESH_FOR and now < seen.due_at

    def resting(self, seconds: float) -> list[int]:
        """Tables, by oid, where nothing has been found for so long."""
        since = time.monotonic() - seconds
        return [job_type.oid for job_type in self.present if self._busy_at.get(job_type.index, 0.0) < since]

    def read(self, connection: AsyncConnection[Any], looks: list[Look], answers: list[PGresult]) -> View:
        """What these looks have found, and the last ones at the other tables."""
        for look, answer in zip(looks, answers, strict=True):
            self._read(look, pipeline.rows(pipeline.adapter_of(connection), answer))
        return self._view()

    def _view(self) -> View:
        now = time.monotonic()
        view = View([], {}, {}, set(), {})
        for job_type in self.present:
            seen = self._seen.get(job_type.index)
            if seen is None or seen.table != job_type.oid:
                continue
            view.heads.extend(seen.heads)
            view.foreign.update(seen.foreign)
            if seen.limit is not None:
                view.limits[job_type.index] = seen.limit
                view.uncounted.update([] if seen.whole else [job_type.index])
            if seen.due_at < math.inf:
                view.due_in[job_type.oid] = seen.due_at - now
        return view

    def _read(self, look: Look, rows: list[tuple[Any, ...]]) -> None:
        """Keeps what one table has."""
        job_type, index, now = look.job_type, look.job_type.index, time.monotonic()
        *heads, last = rows
        _, _, due_at, _, _, due_in, limit, running, settled, took = last
        seen = Seen(job_type.oid, now, look.whole, [], {}, limit, math.inf if due_in is None else now + due_in)
        room = None if limit is None else limit - (running or 0)
        best: dict[str, tuple[Any, ...]] = {}
        for row in heads:
            best[row[0]] = min(row[:5], best.get(row[0], row[:5]))
        for queue, priority, run_at, job_id, version in best.values():
            if self._queues is None or queue in self._queues:
                seen.heads.append(Head(job_type, queue, priority, run_at, job_id, limit, room))
            elif room is None or room > 0:
                seen.foreign[index, queue] = version
        if job_type.key is None:
            found = {Place(queue, priority): Bound(run_at, job_id) for queue, priority, run_at, job_id, *_ in heads}
            self._bounds[index].seen(Found(found, due_at, settled, took), whole=look.whole)
        if seen.heads:
            self._busy_at[index] = now
        self._seen[index] = seen

    async def look(self, connection: AsyncConnection[Any]) -> View:
        """A look by itself: finds out which table is in the way, if one is, and goes on with the others."""
        looks, answers = [], []
        for job_type in self.present:
            look = self._look_at(job_type, whole=True)
            try:
                answers += await pipeline.ask(connection, [look.command])
                looks.append(look)
            except errors.LockNotAvailable:
                job_type.locked_until = time.monotonic() + LOCKED_OUT
            except (errors.UndefinedTable, errors.UndefinedColumn):
                await resolve(connection, self._types)
        return self.read(connection, looks, answers)

    def promotions(self, tables: set[int]) -> list[Command]:
        """Make rows of these tables that are due claimable; the looks after them see those."""
        commands = []
        for job_type in self.present:
            if job_type.oid not in tables:
                continue
            bounds = self._bounds[job_type.index]
            parameters = {"limit": PROMOTE_BATCH, "due_from": bounds.due_from}
            commands.append(Command(job_type.statement("promote_jobs"), parameters))
            bounds.promoted()
        return commands

    def _look_at(self, job_type: JobType, *, whole: bool) -> Look:
        if whole:
            name, parameters = "look_for_jobs", {"key": job_type.job_class.concurrency_key}
        else:
            name, parameters = "look_from_bounds", self._bounds[job_type.index].parameters()
        return Look(job_type, whole, Command(job_type.statement(name), {**parameters, "table": job_type.oid}))
