"""Rows of cluster.schedules and of their history, as the dashboard shows them, and what somebody does to one.

Each deed leaves a row in cluster.audit, in the same transaction.

Writes cluster.schedules; by `cluster.run_schedule` and `cluster.backfill_schedule` job tables and cluster.schedule_runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from psycopg import errors

from cluster.dashboard.actions import Refused, note
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.errors import ClusterError, RecurrenceError
from cluster.schedule_words import Row, between, state_of, upcoming, when

PAGE, RUNS = 50, 50
"""Schedules, and occurrences, of a page."""
LONGEST_NAME = 128
STATES = ("active", "sleeping", "stopped", "deactivated", "run_once_waiting", "run_once_done", "paused", "overdue")
"""By which the list can be narrowed down."""

_SELECT = """
SELECT s.name, s.job_table::oid::bigint AS oid, s.job_table::text AS job_table, s.job_values, s.cron, s.every, s.time_zone,
       s.starts_at, s.ends_at, s.jitter, s.run_once, s.active, s.paused_at, s.paused_reason, s.state, s.overlap, s.misfire,
       s.expect_within, s.overdue_since, s.on_error, s.next_run_at, s.last_run_at, s.last_outcome, s.last_error, s.missed, s.source,
       s.next_due_at, s.plan_from, s.created_at,
       md5((s.job_table, s.job_values, s.cron, s.every, s.time_zone, s.starts_at, s.ends_at, s.jitter, s.run_once, s.overlap,
            s.misfire, s.expect_within, s.on_error)::text) AS version
FROM cluster.schedules AS s
"""
"""version: of what can be edited. The column `revision` misses some of it, and goes up also when a job sleeps."""


def _with_words(row: Row) -> Row:
    """shown: the state that people see; times: in words."""
    return row | {"shown": state_of(row), "times": when(row)}


async def page(connection: Connection, state: str, text: str, after: str) -> list[Row]:
    """In the order of their names, one more than a page if there is one. state, text, after: empty: any."""
    query = f"""{_SELECT}
    WHERE s.name > %(after)s
      AND (%(text)s = '' OR strpos(lower(s.name), lower(%(text)s)) > 0 OR strpos(s.job_table::text, %(text)s) > 0)
      AND CASE %(state)s WHEN '' THEN true WHEN 'overdue' THEN s.overdue_since IS NOT NULL
          WHEN 'paused' THEN s.paused_at IS NOT NULL
          ELSE s.state = %(state)s END
    ORDER BY s.name LIMIT %(size)s"""
    given = {"state": state, "text": text, "after": after, "size": PAGE + 1}
    return [_with_words(row) for row in await (await connection.execute(query.encode(), given)).fetchall()]


async def names(connection: Connection) -> list[str]:
    """The first five hundred."""
    query = "SELECT name FROM cluster.schedules ORDER BY name LIMIT 500"
    return [row["name"] for row in await (await connection.execute(query)).fetchall()]


async def find(connection: Connection, name: str, *, locked: bool = False) -> Row | None:
    """locked: nobody changes it until the transaction ends."""
    query = f"{_SELECT} WHERE s.name = %s{' FOR NO KEY UPDATE OF s' if locked else ''}"
    row = await (await connection.execute(query.encode(), [name.replace("\x00", "")])).fetchone()
    return None if row is None else _with_words(row)


async def history(connection: Connection, name: str, before: datetime | None) -> list[Row]:
    """Occurrences, newest first, one more than a page if there is one. took: seconds from begin to end; late: from due to begin."""
    query = """
    SELECT due_at, started_at, finished_at, job_id, job_table::oid::bigint AS oid, outcome,
           extract(epoch FROM finished_at - started_at)::float8 AS took, extract(epoch FROM started_at - due_at)::float8 AS late
    FROM cluster.schedule_runs WHERE name = %s AND due_at < coalesce(%s::timestamptz, 'infinity') ORDER BY due_at DESC LIMIT %s
    """
    return await (await connection.execute(query, [name, before, RUNS + 1])).fetchall()


async def service(connection: Connection) -> dict[str, Any]:
    """Of reloads: since when one has been running, and when the last one ended. One that has not ended after a minute is none."""
    query = """
    SELECT CASE WHEN reloading_since > now() - interval '1 minute' THEN reloading_since END AS reloading_since, reloaded_at
    FROM cluster.schedule_service
    """
    row = await (await connection.execute(query)).fetchone()
    return row or {"reloading_since": None, "reloaded_at": None}


async def privileges(connection: Connection) -> Mapping[str, bool]:
    """What the dashboard's role in Postgres may do."""
    query = """
    SELECT has_table_privilege(s, 'INSERT') AS add, has_table_privilege(s, 'UPDATE') AS change,
           has_table_privilege(s, 'DELETE') AS delete,
           has_table_privilege(s, 'UPDATE') AND has_table_privilege(r, 'INSERT') AS run,
           has_table_privilege(s, 'UPDATE') AND has_table_privilege(r, 'INSERT') AND has_table_privilege(r, 'DELETE') AS backfill,
           has_table_privilege(s, 'UPDATE') AND has_table_privilege('cluster.schedule_service', 'UPDATE') AS reload
    FROM (VALUES ('cluster.schedules', 'cluster.schedule_runs')) AS tables (s, r)
    """
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row


def next_runs(row: Row, count: int = 5) -> list[datetime]:
    """Occurrences to come. Empty also for a schedule whose times make no sense: its `last_error` says so."""
    try:
        return list(islice(upcoming(row), count))
    except RecurrenceError:
        return []


# --- deeds ---

_SET: Mapping[str, tuple[str, str]] = {
    "activate": ("active = true", "{name} is active."),
    "deactivate": ("active = false", "{name} is deactivated: it runs no more until somebody activates it."),
    "pause": (
        "paused_at = coalesce(paused_at, now()), paused_reason = %(reason)s",
        "{name} is paused: what comes due meanwhile is left out.",
    ),
    "resume": ("paused_at = NULL, paused_reason = NULL", "{name} goes on."),
}
DEEDS = (*_SET, "run", "delete")


async def do(connection: Connection, user: User, row: Row, deed: str, reason: str | None) -> str:
    """Says what came of it. row: locked. Refused: it can't be done."""
    name = row["name"]
    count = None
    if deed == "run":
        said = await _run(connection, row)
        count = 1
    elif deed == "delete":
        if row["source"] == "code":
            raise Refused(f"{name} belongs to its job class: remove it there and migrate, or deactivate it here.")
        await connection.execute("DELETE FROM cluster.schedules WHERE name = %s", [name])
        said = f"{name} is deleted. Its history stays for 30 days, and so do its jobs."
    else:
        assignments, said = _SET[deed]
        query = f"UPDATE cluster.schedules SET {assignments} WHERE name = %(name)s"  # noqa: S608 - constants of this module
        await connection.execute(query.encode(), {"name": name, "reason": reason})
        said = said.format(name=name)
    await note(connection, user, deed, f"schedule {name}", {"reason": reason} if reason else None, count)
    return said


async def _run(connection: Connection, row: Row) -> str:
    try:
        async with connection.transaction():
            found = await (await connection.execute("SELECT cluster.run_schedule(%s) AS id", [row["name"]])).fetchone()
    except (errors.DataError, errors.IntegrityError, errors.RaiseException, errors.UndefinedTable) as error:
        raise Refused(f"Its job can't be inserted: {error.diag.message_primary}.") from error
    if found is None or found["id"] is None:
        raise Refused("A trigger of the job table let the job not come.")
    return f"Job {found['id']} is new. The next run of {row['name']} stays where it is."


async def backfill(
    connection: Connection, row: Row, first: datetime, last: datetime, which: str, *, dry_run: bool
) -> list[Row]:
    """Occurrences with the ids of their new jobs. Refused: they are too many, or too old."""
    try:
        dues = between(row, first, last)
        async with connection.transaction():
            query = "SELECT due_at, job_id FROM cluster.backfill_schedule(%s, %s, %s, %s)"
            return await (await connection.execute(query, [row["name"], dues, which, dry_run])).fetchall()
    except ClusterError as error:
        raise Refused(f"{error}.".capitalize()) from error
    except (errors.DataError, errors.IntegrityError, errors.RaiseException, errors.UndefinedTable) as error:
        raise Refused(f"{error.diag.message_primary}.".capitalize()) from error


async def begin_reload(connection: Connection) -> bool:
    """False: one is running; one that has not ended after a minute is none any more."""
    query = """
    UPDATE cluster.schedule_service SET reloading_since = now()
    WHERE reloading_since IS NULL OR reloading_since < now() - interval '1 minute'
    """
    return bool((await connection.execute(query)).rowcount)


async def reload(connection: Connection, user: User) -> int:
    """Lets go on what has stopped; returns how many. Its end is told together with it."""
    row = await (await connection.execute("SELECT cluster.reload_schedules() AS going_on")).fetchone()
    await connection.execute("UPDATE cluster.schedule_service SET reloading_since = NULL, reloaded_at = now()")
    await note(connection, user, "reload", "schedules", None, None)
    assert row is not None
    going_on: int = row["going_on"]
    return going_on
