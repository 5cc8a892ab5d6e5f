"""For tests of code that enqueues: what is in the job table, as the session's own transaction sees it, with the nearest misses."""

from __future__ import annotations

import json
import typing
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from cluster import insertion
from cluster.errors import EnqueueError
from cluster.insertion import quoted, quoted_column
from cluster.job import Job, definition
from cluster.job_checks import did_you_mean
from cluster.secret import MASK
from cluster.sessions import Ask, AsyncSession, Conversation, SyncSession, converse

_SHOWN = 3
_STANDARD = ("queue", "priority")


@typing.overload
def assert_enqueued(
    session: SyncSession,
    job_class: type[Job],
    *,
    count: int | None = ...,
    within: timedelta | None = ...,
    **values: Any,
) -> None: ...
@typing.overload
def assert_enqueued(
    session: AsyncSession,
    job_class: type[Job],
    *,
    count: int | None = ...,
    within: timedelta | None = ...,
    **values: Any,
) -> Awaitable[None]: ...
def assert_enqueued(
    session: SyncSession | AsyncSession,
    job_class: type[Job],
    *,
    count: int | None = None,
    within: timedelta | None = None,
    **values: Any,
) -> Awaitable[None] | None:
    """AssertionError: no job waits that has these values, of fields, `queue` and `priority`; or not as many as count.

    within: it is due by then, counted from now. A job that has begun waits no more.
    """
    return converse(session, _assert_found(job_class, count, within, values))


@typing.overload
def refute_enqueued(
    session: SyncSession, job_class: type[Job], *, within: timedelta | None = ..., **values: Any
) -> None: ...
@typing.overload
def refute_enqueued(
    session: AsyncSession, job_class: type[Job], *, within: timedelta | None = ..., **values: Any
) -> Awaitable[None]: ...
def refute_enqueued(
    session: SyncSession | AsyncSession, job_class: type[Job], *, within: timedelta | None = None, **values: Any
) -> Awaitable[None] | None:
    """AssertionError: a job waits that `assert_enqueued` would find."""
    return converse(session, _assert_found(job_class, 0, within, values))


def _assert_found(
    job_class: type[Job], count: int | None, within: timedelta | None, values: dict[str, Any]
) -> Conversation[None]:
    row = yield _question(job_class, within, values)
    assert row is not None  # an aggregate
    found, waiting, nearest = row
    if found == count or (count is None and found):
        return
    hidden = dict.fromkeys(definition(job_class).secrets, MASK)
    wanted = [f"{name}={hidden.get(name, value)!r}" for name, value in values.items()]
    wanted += [] if within is None else [f"within={within!r}"]
    said = (
        f"{found} of {waiting} waiting jobs in {definition(job_class).table} are {job_class.__name__}({', '.join(wanted)}),"
        f" not {'one or more' if count is None else count}"
    )
    shown = "".join(f"\n  {json.dumps(each | hidden, ensure_ascii=False)}" for each in json.loads(nearest))
    raise AssertionError(f"{said}; the nearest:{shown}" if shown else said)


def _question(job_class: type[Job], within: timedelta | None, values: dict[str, Any]) -> Ask:
    columns = {column.name: column for column in definition(job_class).columns}
    for name in values:
        if name not in columns and name not in _STANDARD:
            raise EnqueueError(f"{job_class.__name__} has no field {name!r}{did_you_mean(name, columns)}")
    sent = {
        name: insertion.as_json(job_class, name, columns[name].value(value) if name in columns else value)
        for name, value in values.items()
    }
    table = quoted(definition(job_class).table)
    tests = [f"(job.{quoted_column(name)} IS NOT DISTINCT FROM given.{quoted_column(name)})" for name in values]
    asked: list[Any] = []
    if within is not None:
        tests.append("(job.run_at <= now() + %s::text::interval)")
        asked.append(insertion.interval(within))
    shown = ", ".join(f"job.{quoted_column(name)}" for name in (*columns, "id", *_STANDARD, "run_at"))
    matching = " + ".join(f"{test}::integer" for test in tests) or "0"
    statement = f"""
WITH waiting AS (
    SELECT {matching} AS same, (SELECT row_to_json(shown) FROM (SELECT {shown}) AS shown) AS shown
    FROM {table} AS job, json_populate_record(NULL::{table}, %s::text::json) AS given
    WHERE job.status IN ('scheduled', 'not_started'))
SELECT count(*) FILTER (WHERE same = {len(tests)}), count(*),
       (SELECT coalesce(json_agg(near.shown), '[]')::text FROM (
           SELECT shown FROM waiting ORDER BY same DESC LIMIT {_SHOWN}) AS near)
FROM waiting"""  # noqa: S608 - names are quoted
    return statement, [*asked, json.dumps(sent)]
