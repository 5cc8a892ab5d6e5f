"""Ends a node once nothing is due any more: no row that this node may perform is ready to begin, and it performs none.

Counts in the claims' own session, so that no claim is under way meanwhile, and what this node has performed is written, with all
that it has enqueued. Reads only. What is due and can't be had does not keep the node for ever: it says what is left, and why.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection

from cluster import statements
from cluster.coordinator import job_types
from cluster.coordinator.backlog import Backlog
from cluster.coordinator.finish import Finisher
from cluster.coordinator.job_types import JobType
from cluster.coordinator.pipeline import Command
from cluster.coordinator.placement import Placement
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.coordinator.survey import ask_some
from cluster.coordinator.trouble import Hold, Troubles

INTERVAL = 0.1
"""Seconds between two checks whether the node has become idle."""
COUNT_INTERVAL = 1.0
"""Seconds between two counts while it is busy; longer if a count takes more than a twentieth of that."""
PATIENCE = 3.0
"""Seconds for which it waits, idle, for what is due and can't be had: longer than two tries of what may pass are apart."""
MOST = 100_000
"""Jobs of one table that are counted, so that claims need not wait for it; there may be more."""


class Left(NamedTuple):
    """Of one job type, in the queues of this node. due: could begin, as far as a count tells; the next three must not now.

    running: on other nodes. why: that what is due could not be had, or whether something is can't be told; empty: nothing is.
    """

    job_type: str
    due: int
    paused: int
    scheduled: int
    retry: int
    running: int
    why: str


class Progress(NamedTuple):
    """So far. ended: see Finisher.ended. given_up: rows that were made `failed`, since they can't be performed at all.

    left: by the last count; empty: not counted yet. is_over: there is nothing more to do, or to be had.
    """

    ended: Counter[str]
    given_up: int
    running: int
    left: list[Left]
    is_over: bool


class _Table:
    def __init__(self, backlog: Backlog, troubles: Troubles) -> None:
        self.job_type = backlog.job_type
        self.backlog = backlog
        self.hold = Hold(troubles, backlog.job_type.name)

    @property
    def is_counted(self) -> bool:
        return bool(self.job_type.oid) and not self.job_type.key_differs and self.hold.is_over

    def command(self) -> Command:
        return Command(statements.for_table("count_jobs", self.job_type.table, key=self.job_type.key), {"most": MOST})


class _Pauses:
    """rows: of list_pauses."""

    def __init__(self, rows: Sequence[tuple[int | None, str | None, str]]) -> None:
        self._tables = {table for table, _, _ in rows}
        self._queues = {queue for _, queue, _ in rows}

    def holds(self, job_type: JobType, queue: str) -> bool:
        return job_type.oid in self._tables or not {"*", queue}.isdisjoint(self._queues)


class WorkOff:
    """`tick` is one check. queues: this node's, None: all. is_ready: the node may claim, and has a worker.

    tell: called with each progress. end: called once there is nothing more to do.
    """

    def __init__(
        self,
        session: Session,
        backlogs: Sequence[Backlog],
        queues: list[str] | None,
        troubles: Troubles,
        placement: Placement,
        finisher: Finisher,
        is_ready: Callable[[], bool],
        tell: Callable[[Progress], None],
        end: Callable[[], None],
    ) -> None:
        self._session = session
        self._tables = [_Table(backlog, troubles) for backlog in backlogs]
        self._queues = queues
        self._troubles = troubles
        self._placement = placement
        self._finisher = finisher
        self._is_ready = is_ready
        self._tell = tell
        self._end = end
        self._left: list[Left] = []
        self._count_at = 0.0
        """CLOCK_MONOTONIC seconds from when on it is counted while the node is busy."""
        self._active_at = time.monotonic()
        """CLOCK_MONOTONIC seconds when it last had something to do, or could not have had."""
        self._ended = 0

    async def tick(self) -> float:
        """Returns the seconds until the next one."""
        is_over = False
        if not self._is_ready():
            self._active_at = time.monotonic()
        elif self._is_idle or time.monotonic() >= self._count_at:
            try:
                is_over = await self._count()
            except (TransientDatabaseError, psycopg.Error):
                self._active_at = time.monotonic()
                raise
        self.tell(is_over=is_over)
        if is_over:
            self._end()
        return INTERVAL

    def tell(self, *, is_over: bool) -> None:
        """How far it is. A signal ends the node before it is over."""
        given_up = sum(table.backlog.given_up for table in self._tables)
        ended = Counter(self._finisher.ended)
        self._tell(Progress(ended, given_up, self._placement.running, self._left, is_over))

    @property
    def _is_idle(self) -> bool:
        return not self._placement.running and self._finisher.is_drained

    async def _count(self) -> bool:
        """Whether it is over."""
        before = time.monotonic()
        async with self._session.use() as connection:
            is_idle = self._is_idle
            if not any(table.job_type.oid for table in self._tables):  # before the first claim
                await job_types.resolve(connection, [table.job_type for table in self._tables])
            self._left = await self._count_left(connection)
        now = time.monotonic()
        self._count_at = now + max(COUNT_INTERVAL, 20 * (now - before))
        ended = self._finisher.ended.total()
        if not is_idle or ended != self._ended:
            self._active_at, self._ended = now, ended
        return is_idle and (not any(left.why for left in self._left) or now > self._active_at + PATIENCE)

    async def _count_left(self, connection: AsyncConnection[Any]) -> list[Left]:
        pauses = _Pauses(await (await connection.execute(statements.statement("list_pauses"))).fetchall())
        answers = await ask_some(connection, {table: table.command() for table in self._tables if table.is_counted})
        for table in answers:
            table.hold.end()
        return [self._left_of(table, answers.get(table), pauses) for table in self._tables]

    def _left_of(
        self, table: _Table, rows: Sequence[tuple[str, str, float | None, int, int]] | None, pauses: _Pauses
    ) -> Left:
        """rows: of count_jobs, None: it can't be counted."""
        count: Counter[str] = Counter()
        for queue, status, age, jobs, _ in rows or ():
            if self._queues is not None and queue not in self._queues and status != "running":
                continue
            is_paused = pauses.holds(table.job_type, queue)
            if status == "not_started":
                count["paused" if is_paused else "due"] += jobs
            elif status == "running":
                count["running"] += jobs
            else:
                is_due = age is not None and not is_paused
                count["due"] += is_due
                count[status] += jobs - is_due
        why = self._why(table, count["running"]) if count["due"] or rows is None else ""
        own = self._placement.claimed(table.job_type)
        running = max(0, count["running"] - own)
        return Left(
            table.job_type.name, count["due"], count["paused"], count["scheduled"], count["retry"], running, why
        )

    def _why(self, table: _Table, running: int) -> str:
        """That nothing of a table could be had although something is due, or may be."""
        name, limit = table.job_type.name, table.backlog.limit
        if table.job_type.key_differs or not table.job_type.oid:
            return "this node leaves its table alone: see the log"
        for trouble in self._troubles.listed():
            if trouble["job_type"] == name:
                return f"{trouble['reason']}: {trouble['detail']}"
        if limit is not None and running >= limit:
            return f"the limit of {limit} is used up by other nodes" if limit else "its limit is 0"
        if table.job_type.key is not None:
            return "the limit of their keys is used up by other nodes, or somebody holds the rows"
        return "somebody holds the rows, or other nodes are about to begin them"
