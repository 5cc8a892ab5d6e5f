"""What became of a job that was enqueued, asked and told on any session: its status, its end, cancelling and retrying it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeAlias, cast

from cluster.enqueueing import Explained
from cluster.errors import EnqueueError, WaitTimeoutError
from cluster.insertion import quoted
from cluster.job import Job, definition
from cluster.sessions import (
    Ask,
    Async,
    AsyncSession,
    Awaited,
    Conversation,
    Row,
    Sync,
    SyncSession,
    bind,
    hold,
    is_async,
)
from cluster.tables import identifier

Told: TypeAlias = str | Awaited[str | None] | None
"""Awaited on an async session."""
FINISHED = frozenset({"succeeded", "failed", "timed_out", "cancelled"})


def status(job: Job, session: SyncSession | AsyncSession) -> Told:
    """As the session's transaction sees it. None: there is no such row, any more or yet."""
    return _told(job, session, _question(job))


def cancel(job: Job, session: SyncSession | AsyncSession) -> Told:
    """In the session's transaction. The status then: a running job is told when that is committed."""
    return _told(job, session, _call(job, "cancel"))


def retry(job: Job, session: SyncSession | AsyncSession) -> Told:
    """In the session's transaction. The database's error: the job has not finished."""
    return _told(job, session, _call(job, "retry"))


def wait(job: Job, session: SyncSession | AsyncSession, timeout: timedelta) -> Told:
    """The status in which the job has finished. None: its row is gone. WaitTimeoutError: it has not finished by then."""
    given: Any = timeout  # callers without a type checker give anything
    if not isinstance(given, timedelta) or given <= timedelta(0):
        raise EnqueueError(f"timeout is a timedelta above zero, not {timeout!r}")
    bound, ask = bind(session), _question(job)
    if bound.in_transaction():
        raise EnqueueError(
            "commit first: no node sees the job while the transaction that enqueued it is open, so waiting in it would be for ever"
        )
    if is_async(bound):
        return _wait_async(cast("Async", bound), job, ask, timeout)
    return _wait(cast("Sync", bound), job, ask, timeout)


def _wait(session: Sync, job: Job, ask: Ask, timeout: timedelta) -> str | None:
    last: str | None = None
    with Explained(type(job), session):
        for pause in _pauses(timeout):
            time.sleep(pause)
            last = _first(session.look(*ask))
            if last is None or last in FINISHED:
                return last
    served = None
    with suppress(Exception):  # whoever enqueues need not see the nodes
        served = _first(session.look(*_served(job)))
    raise _too_late(job, last, served, timeout)


async def _wait_async(session: Async, job: Job, ask: Ask, timeout: timedelta) -> str | None:
    last: str | None = None
    with Explained(type(job), session):
        for pause in _pauses(timeout):
            await asyncio.sleep(pause)
            last = _first(await session.look(*ask))
            if last is None or last in FINISHED:
                return last
    served = None
    with suppress(Exception):  # whoever enqueues need not see the nodes
        served = _first(await session.look(*_served(job)))
    raise _too_late(job, last, served, timeout)


def _pauses(timeout: timedelta) -> Iterator[float]:
    """Seconds before each look: a job that takes milliseconds is seen soon, one that takes minutes costs two looks a second."""
    end = time.monotonic() + timeout.total_seconds()
    yield 0.0
    pause = 0.01
    while (left := end - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.5, 0.5)


def _served(job: Job) -> Ask:
    return (
        "SELECT count(*)::text FROM cluster.nodes WHERE state = 'live' AND %s::text = ANY (jobs)",
        [type(job).__name__],
    )


def _too_late(job: Job, last: str | None, served: str | None, timeout: timedelta) -> WaitTimeoutError:
    """served: by how many nodes the class is known; None: that can't be seen."""
    nodes = f"no node that runs knows {type(job).__name__}" if served == "0" else "no node has taken it"
    reason = {
        "not_started": f": {nodes}; `cluster status` shows the nodes, limits and pauses",
        "scheduled": ": it is not due yet",
        "retry": ": an attempt has failed, and the next is not due yet",
    }.get(last or "", "")
    return WaitTimeoutError(
        f"job {job.id} of {definition(type(job)).table} is {last} after {timeout.total_seconds():g} s{reason}"
    )


def _question(job: Job) -> Ask:
    table = quoted(definition(type(job)).table)
    return f"SELECT status::text FROM {table} WHERE id = %s::bigint", [_id(job)]  # noqa: S608 - the name is quoted


def _call(job: Job, function: str) -> Ask:
    table = identifier(definition(type(job)).table).as_string()  # a value here
    return f"SELECT cluster.{function}(%s::text::regclass, %s::bigint)::text", [table, _id(job)]


def _id(job: Job) -> int:
    if job.id is None:
        raise EnqueueError(f"this {type(job).__name__} has no id: take what perform_later returns")
    return job.id


def _told(job: Job, session: SyncSession | AsyncSession, ask: Ask) -> Told:
    bound = bind(session)
    return hold(bound, _asked(job, bound, ask))


def _asked(job: Job, bound: Sync | Async, ask: Ask) -> Conversation[str | None]:
    with Explained(type(job), bound):
        return _first((yield ask))


def _first(row: Row) -> str | None:
    return None if row is None else row[0]
