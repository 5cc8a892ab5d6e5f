"""Fires schedules: computes what is due and what comes next, and has one statement insert the jobs and move the schedules on.

Every node does so, without a leader: a schedule's row is locked, looked at once more, and moved together with its job. The timer is
the first `wake_at` of all schedules, by the database's clock. Shares the finish connection, between batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from cluster import events, statements
from cluster.coordinator.causes import brief, cause_of
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.refusal import ROWS_OWN, is_lost
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Pace
from cluster.errors import RecurrenceError
from cluster.recurrence import Recurrence

BATCH = 500
"""Schedules of one statement. Each takes Postgres about 35 µs, and each statement a commit."""
MOST_MISSED = 1000
"""Occurrences of one schedule that are made up for, where all are; the latest."""
LONGEST_TURN = 0.1
"""Seconds of computing at a time."""
AGAIN = 0.25
"""Seconds until what is due and was left out is looked at again: another node is firing it, or has died while it was."""
DEAF_INTERVAL = 1.0
"""Seconds between two looks where nobody tells of changes: behind a pooler."""
LARGEST_SHIFT = timedelta(hours=3)
"""By how much a clock may have been changed between the computing of an occurrence and its time."""
_TICK = timedelta(microseconds=1)
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
    state: str
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
    answer = {"name": row.name, "revision": row.revision}
    try:
        recurrence = row.recurrence()
    except RecurrenceError as error:  # this node has no such time zone
        return answer | {"error": str(error)}
    assert row.due_at is not None
    answer["due_at"] = row.due_at.isoformat()
    first = _as_the_clock_is_now(row, recurrence)
    if first is None or recurrence.run_at(first) > row.now:
        return answer | {"fire": [], "missed": 0} | _next(recurrence, first)
    late, missed, there_are_more = _late(recurrence, first, row.now)
    if there_are_more:
        answer |= {"fire": [], "missed": missed + len(late)}
        return answer | _next(recurrence, recurrence.after(late[-1], late[-1]))
    holds = row.overlap in {"queue_one", "cancel_running"}
    if row.misfire != "all" or holds or row.state == "run_once_waiting":
        missed += len(late) - 1
        late = late[-1:]
    elif row.overlap == "skip" and (len(late) > 1 or row.now - recurrence.run_at(first) > GRACE):
        late, holds = late[:1], True  # what is made up for runs one after the other
    last = late[-1]
    if row.misfire == "skip" and row.now - recurrence.run_at(last) > GRACE:
        missed += 1
        late = []
    occurrences = [{"due_at": due.isoformat(), "run_at": recurrence.run_at(due).isoformat()} for due in late]
    answer |= {"fire": occurrences, "missed": missed, "holds": holds}
    return answer | _next(recurrence, recurrence.after(last, last))


def _late(recurrence: Recurrence, first: datetime, now: datetime) -> tuple[list[datetime], int, bool]:
    """Occurrences from the first up to now, the latest MOST_MISSED at most; how many there were before these; and whether these are
    only some that are too old to be made up for: cron is counted in parts, and the next look goes on from there.
    """
    missed = 0
    if recurrence.every is not None:
        missed = max(0, (now - first) // recurrence.every + 1 - MOST_MISSED)
        first += missed * recurrence.every
    passed = takewhile(lambda due: recurrence.run_at(due) <= now, recurrence.following(first, first))
    late = [first, *islice(passed, 2 * MOST_MISSED - 1)]
    if len(late) == 2 * MOST_MISSED:
        return late[:MOST_MISSED], missed, True
    cut = max(0, len(late) - MOST_MISSED)
    return late[cut:], missed + cut, False


def _as_the_clock_is_now(row: Due, recurrence: Recurrence) -> datetime | None:
    """The occurrence that is due. A government may have changed its clock since that was computed; then the one next to it."""
    assert row.due_at is not None
    due = row.due_at.astimezone(UTC)
    if recurrence.every is not None or row.state == "sleeping" or recurrence.after(due - _TICK) == due:
        return due
    return recurrence.after(due - LARGEST_SHIFT)


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
        self._pace = Pace(BATCH)

    async def tick(self) -> float:
        """Returns the seconds until the next schedule is due, or the next look."""
        lease = self._lease()
        if lease is None:  # what runs once would run before this node is known to start the cluster, and again after
            return self._interval
        async with self._session.use() as connection:
            if lease is not self._registered:
                await connection.execute(statements.statement("begin_boot"), {"node": lease.node})
                self._registered = lease
            due = [Due(*row) for row in await _rows(connection, "list_due_schedules", limit=self._pace.rows)]
            plans, fires = _computed(due)
            done = await self._deal_with(connection, due, plans, fires) if due else 0
            if done and (len(due) == self._pace.rows or len(plans) + len(fires) < len(due)):
                return 0.0
            soonest = await _rows(connection, "find_next_schedule")
        delay = max(soonest[0][0], 0.0 if done or not due else AGAIN) if soonest else self._interval
        return min(delay, DEAF_INTERVAL if self._is_deaf() else self._interval)

    async def _deal_with(
        self, connection: AsyncConnection[Any], due: list[Due], plans: list[dict[str, Any]], fires: list[dict[str, Any]]
    ) -> int:
        """Returns how many it could deal with."""
        fired = await self._fire(connection, fires)
        planned = await _rows(connection, "plan_schedules", plans=Jsonb(plans)) if plans else []
        for name, error in planned:
            if error is not None:
                events.schedule_failed(name, error)
        held = {name for name, result, *_ in fired if result == "held"}
        await self._cancel(
            connection, [row.name for row in due if row.name in held and row.overlap == "cancel_running"]
        )
        overdue = await _rows(connection, "mark_overdue_schedules")
        for (name,) in overdue:
            events.schedule_overdue(name)
        return len(planned) + len(fired) + len(overdue)

    async def _fire(self, connection: AsyncConnection[Any], answers: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """What the statement itself can't contain, such as a slow trigger or a constraint that is checked at the commit, is found
        by firing schedules one by one."""
        if not answers:
            return []
        try:
            fired = await _rows(connection, "fire_schedules", plans=Jsonb(answers))
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise
            if self._pace.too_slow():
                return []
            one, passes = answers[0], cause_of(error) not in ROWS_OWN
            await _rows(
                connection,
                "fail_schedule",
                schedule=one["name"],
                revision=one["revision"],
                error=brief(error),
                passes=passes,
            )
            fired = [(one["name"], "postponed" if passes else "failed", None, brief(error))]
        else:
            self._pace.worked()
        for name, result, lag, why in fired:
            events.schedule_fired(name, result, lag, why)
        return fired

    async def _cancel(self, connection: AsyncConnection[Any], names: list[str]) -> None:
        """Where that can't be done now, it is tried again with the schedule."""
        try:
            if names:
                await _rows(connection, "cancel_for_schedules", names=names)
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise


def _computed(due: list[Due]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What to plan, and what to fire: of as many as there is time for, since the node's loop stands still meanwhile."""
    until = time.monotonic() + LONGEST_TURN
    plans: list[dict[str, Any]] = []
    fires: list[dict[str, Any]] = []
    for row in due:
        if row.plan_from is not None:
            plans.append(plan(row))
        elif _is_ready(row):
            answer = fire(row)
            (plans if "error" in answer else fires).append(answer)
        if time.monotonic() > until:
            break
    return plans, fires


def _is_ready(row: Due) -> bool:
    """It may be there for another reason: its job has not succeeded in time."""
    return row.plan_from is None and row.due_at is not None and row.run_at is not None and row.run_at <= row.now


async def _rows(connection: AsyncConnection[Any], name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(statements.statement(name), parameters, binary=True)
    return await cursor.fetchall()
