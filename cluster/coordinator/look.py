"""Looks where work waits: the best row of every queue of every job table, and when the next one is due. Takes nothing.

Called by the claimer, on its connection. Leaves out tables that are gone, or that somebody holds locked as a whole.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from psycopg import AsyncConnection, AsyncCursor, errors

from cluster.coordinator.job_types import JobType, resolve
from cluster.coordinator.parked import ParkedKeys

PROMOTE_BATCH = 1000
LOCKED_OUT = 1.5
"""Seconds for which a table that somebody holds locked is left out."""


class Head(NamedTuple):
    """The best waiting row of one queue of one job type. run_at, id None: not known.

    room: under the type's limit; None: it has none, or one for each key.
    """

    job_type: JobType
    queue: str
    priority: int
    run_at: datetime | None
    id: int | None
    room: int | None

    @property
    def has_room(self) -> bool:
        return self.room is None or self.room > 0


class View(NamedTuple):
    """What a look found.

    foreign: what stands for the row at the head of each queue that is not this node's, by type and queue; it changes with the row.
    limited: indexes of the types that have a limit. due_in: seconds until the next row is due; None: none is.
    """

    heads: list[Head]
    foreign: dict[tuple[int, str], str]
    limited: set[int]
    due_in: float | None


Answers: TypeAlias = list[tuple[JobType, AsyncCursor[Any]]]


class Looker:
    """Looks at the tables of these types. queues: those to look at; sweep: seconds between searches for tables come or gone."""

    def __init__(self, types: list[JobType], queues: tuple[str, ...], sweep: float) -> None:
        self.parked = ParkedKeys(None if "*" in queues else queues)
        self._types = types
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

    async def send(self, connection: AsyncConnection[Any]) -> Answers:
        """Sends a look at every table; inside a pipeline, so the answers are there only after it."""
        return [(job_type, await self._look_at(connection, job_type)) for job_type in self.present]

    async def read(self, answers: Answers) -> View:
        view = View([], {}, set(), None)
        due: list[float] = []
        for job_type, cursor in answers:
            for queue, priority, run_at, job_id, version, room, due_in in await cursor.fetchall():
                if queue is None:
                    due += [] if due_in is None else [due_in]
                    view.limited.update([] if room is None else [job_type.index])
                elif self._queues is None or queue in self._queues:
                    view.heads.append(Head(job_type, queue, priority, run_at, job_id, room))
                elif room is None or room > 0:
                    view.foreign[job_type.index, queue] = version
        return view._replace(due_in=min(due, default=None))

    async def look(self, connection: AsyncConnection[Any]) -> View:
        """A look by itself: finds out which table is in the way, if one is, and goes on with the others."""
        answers = []
        for job_type in self.present:
            try:
                answers.append((job_type, await self._look_at(connection, job_type)))
            except errors.LockNotAvailable:
                job_type.locked_until = time.monotonic() + LOCKED_OUT
            except (errors.UndefinedTable, errors.UndefinedColumn):
                await resolve(connection, self._types)
        return await self.read(answers)

    async def promote(self, connection: AsyncConnection[Any]) -> None:
        """Makes rows that are due claimable."""
        for job_type in self.present:
            await connection.execute(job_type.statement("promote_jobs"), {"limit": PROMOTE_BATCH})

    async def _look_at(self, connection: AsyncConnection[Any], job_type: JobType) -> AsyncCursor[Any]:
        parameters = {"table": job_type.oid, "key": job_type.job_class.concurrency_key}
        return await connection.execute(job_type.statement("look_for_jobs"), parameters, binary=True)
