"""Fires schedules: computes what is due and what comes next, and has one statement insert the jobs and move the schedules on.

Every node does so, without a leader: a schedule's row is locked, looked at once more, and moved together with its job. The timer is
the first `wake_at` of all schedules, by the database's clock. Shares the finish connection, between batches.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from cluster import events, statements
from cluster.coordinator.causes import WHY_HELD, Cause, brief, cause_of
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.refusal import is_lost
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold, Pace, Troubles
from cluster.errors import RecurrenceError
from cluster.recurrence import Recurrence

BATCH = 200
"""Schedules of one statement."""
MOST_MISSED = 1000
"""Occurrences of one schedule that are made up for, where all are; the latest."""
AGAIN = 0.25
"""Seconds until what is due and was left out is looked at again: another node is firing it, or has died while it was."""
DEAF_INTERVAL = 1.0
"""Seconds between two looks where nobody tells of changes: behind a pooler."""
GRACE = timedelta(minutes=1)
"""By how much an occurrence may be late before it is missed, for those that skip what they missed."""


class Due(NamedTuple):
    """A row of list_due_schedules. plan_from: since when its first occurrence has to be found. due_at, run_at: of the next one."""

    name: str
    revision: int
    cron: str | None
    every: timedelta | None
    time_zone: str
    starts_at: datetime | None
    ends_at: datetime | None
    jitter: timedelta
    overlap: str
    misfire: str
    plan_from: datetime | None
    due_at: datetime | None
    run_at: datetime | None
    now: datetime

    def recurrence(self) -> Recurrence:
        """RecurrenceError: it has none."""
        return _recurrence(*self[:1], *self[2:8])


@lru_cache(10_000)
def _recurrence(*definition: Any) -> Recurrence:
    return Recurrence(*definition)


def plan(row: Due) -> dict[str, Any]:
    """The first occurrence of a schedule that has none yet; or the error for which it can't have one."""
    assert row.plan_from is not None
    answer = {"name": row.name, "revision": row.revision}
    try:
        recurrence = row.recurrence()
    except RecurrenceError as error:
        return answer | {"error": str(error)}
    return answer | _next(recurrence, recurrence.after(row.plan_from, row.due_at))


def fire(row: Due) -> dict[str, Any]:
    """What is to become of a schedule that is due: of the occurrences up to now the last one, or all of them; then the next."""
    assert row.due_at is not None
    recurrence = row.recurrence()
    first = row.due_at.astimezone(UTC)
    passed = takewhile(lambda due: recurrence.run_at(due) <= row.now, recurrence.following(first, first))
    late = [first]
    missed = 0
    for due in passed:
        late.append(due)
        if len(late) > MOST_MISSED:
            late = late[1:]
            missed += 1
    if row.misfire != "all" or row.overlap in {"queue_one", "cancel_running"}:
        missed += len(late) - 1
        late = late[-1:]
    last = late[-1]
    if row.misfire == "skip" and row.now - recurrence.run_at(last) > GRACE:
        missed += 1
        late = []
    occurrences = [{"due_at": due.isoformat(), "run_at": recurrence.run_at(due).isoformat()} for due in late]
    answer = {
        "name": row.name,
        "revision": row.revision,
        "due_at": first.isoformat(),
        "fire": occurrences,
        "missed": missed,
    }
    return answer | _next(recurrence, recurrence.after(last, last))


def _next(recurrence: Recurrence, due: datetime | None) -> dict[str, Any]:
    if due is None:
        return {}
    return {"next_due_at": due.isoformat(), "next_run_at": recurrence.run_at(due).isoformat()}


class Scheduler:
    """`tick` deals with all that is due.

    interval: seconds between looks while nothing is. is_deaf: nobody would tell of changes. lease: this node's, None: it has none.
    """

    def __init__(
        self,
        session: Session,
        troubles: Troubles,
        interval: float,
        is_deaf: Callable[[], bool],
        lease: Callable[[], Lease | None],
    ) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._interval = interval
        self._is_deaf = is_deaf
        self._lease = lease
        self._registered: Lease | None = None
        """The lease under which this node has asked whether it is the start of the cluster."""
        self._hold = Hold(troubles, "(schedules)")
        self._pace = Pace(BATCH)

    async def tick(self) -> float:
        """Returns the seconds until the next schedule is due, or the next look."""
        if not self._hold.is_over:
            return AGAIN
        async with self._session.use() as connection:
            try:
                delay = await self._look(connection)
            except psycopg.Error as error:
                if is_lost(connection, error):
                    raise
                if cause_of(error) is not Cause.SLOW or not self._pace.too_slow():
                    self._hold.begin(WHY_HELD.get(cause_of(error), "query_failed"), brief(error))
                return AGAIN
            self._hold.end()
            self._pace.worked()
        return min(delay, DEAF_INTERVAL if self._is_deaf() else self._interval)

    async def _look(self, connection: AsyncConnection[Any]) -> float:
        lease = self._lease()
        if lease is not None and lease is not self._registered:
            await connection.execute(statements.statement("begin_boot"), {"node": lease.node})
            self._registered = lease
        due = [Due(*row) for row in await _rows(connection, "list_due_schedules", limit=self._pace.rows)]
        done = await self._deal_with(connection, due) if due else 0
        if len(due) == self._pace.rows and done:
            return 0.0
        soonest = await _rows(connection, "find_next_schedule")
        delay = soonest[0][0] if soonest else self._interval
        return max(delay, 0.0 if done or not due else AGAIN)

    async def _deal_with(self, connection: AsyncConnection[Any], due: list[Due]) -> int:
        """Returns how many it could deal with."""
        done = 0
        unplanned = [plan(row) for row in due if row.plan_from is not None]
        if unplanned:
            planned = await _rows(connection, "plan_schedules", plans=Jsonb(unplanned))
            done += len(planned)
            for name, error in planned:
                if error is not None:
                    events.schedule_failed(name, error)
        ready = [fire(row) for row in due if row.plan_from is None and row.due_at is not None and _is_ready(row)]
        if ready:
            fired = await _rows(connection, "fire_schedules", plans=Jsonb(ready))
            done += len(fired)
            for name, result, lag, error in fired:
                events.schedule_fired(name, result, lag, error)
            await self._cancel(connection, due, {name for name, result, *_ in fired if result == "held"})
        overdue = await _rows(connection, "mark_overdue_schedules")
        for (name,) in overdue:
            events.schedule_overdue(name)
        return done + len(overdue)

    async def _cancel(self, connection: AsyncConnection[Any], due: list[Due], held: set[str]) -> None:
        names = [row.name for row in due if row.name in held and row.overlap == "cancel_running"]
        if names:
            await _rows(connection, "cancel_for_schedules", names=names)


def _is_ready(row: Due) -> bool:
    """It may be there for another reason: its job has not succeeded in time."""
    return row.run_at is not None and row.run_at <= row.now


async def _rows(connection: AsyncConnection[Any], name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(statements.statement(name), parameters, binary=True)
    return await cursor.fetchall()
