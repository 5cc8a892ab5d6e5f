"""Rows of cluster.schedules for the commands: found by name, and put into words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from psycopg import Connection

    from cluster.recurrence import Recurrence

Row = dict[str, Any]
"""The columns below, by name."""

ICONS = {
    "active": "✔", "sleeping": "⌛", "stopped": "⟳", "deactivated": "⊘", "run_once_waiting": "⏳", "run_once_done": "☕",
    "paused": "‖", "ended": "∎",
}  # fmt: skip
_COLUMNS = """name, job_table::text, job_values, cron, every, time_zone, starts_at, ends_at, jitter, run_once, active, paused_at,
    paused_reason, state, overlap, misfire, expect_within, overdue_since, on_error, next_run_at, last_run_at, last_outcome,
    last_error, missed, source, next_due_at, plan_from"""


@contextmanager
def opened() -> Iterator[Connection[Any]]:
    """A connection to the database of the settings, whose schema fits."""
    from cluster.cli.database import connected, settings_with_database
    from cluster.migration import check_schema

    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        yield connection


def all_rows(connection: Connection[Any]) -> list[Row]:
    """By name."""
    return _select(connection, "true")


def find(connection: Connection[Any], name: str) -> Row:
    """ClusterError: there is none, with the name that was probably meant."""
    from cluster.cli.job_classes import did_you_mean

    found = _select(connection, "name = %s", name)
    if not found:
        names = [row[0] for row in connection.execute("SELECT name FROM cluster.schedules ORDER BY name LIMIT 1000")]
        raise ClusterError(f"there is no schedule {name!r}{did_you_mean(name, names, names[:10])}")
    return found[0]


def _select(connection: Connection[Any], where: str, *parameters: str) -> list[Row]:
    from psycopg.rows import dict_row

    query = f"SELECT {_COLUMNS} FROM cluster.schedules WHERE {where} ORDER BY name"  # noqa: S608 - both are constants
    return connection.cursor(row_factory=dict_row).execute(query.encode(), parameters).fetchall()


def state_of(row: Row) -> str:
    """Its state, or what else keeps it from running."""
    if row["paused_at"] is not None and row["active"]:
        return "paused"
    if row["state"] == "active" and row["next_run_at"] is None and row["plan_from"] is None:
        return "ended"
    state: str = row["state"]
    return state


def recurrence(row: Row) -> Recurrence:
    """RecurrenceError: a wrong cron."""
    from cluster.recurrence import Recurrence

    names = ("name", "cron", "every", "time_zone", "starts_at", "ends_at", "jitter")
    return Recurrence(*(row[name] for name in names))


def upcoming(row: Row) -> Iterator[datetime]:
    """Its occurrences from now on, as far as it is to run at all."""
    if state_of(row) not in {"active", "sleeping", "run_once_waiting"}:
        return
    times = recurrence(row)
    due = row["next_due_at"]
    if due is None and row["plan_from"] is None:  # runs once, and its job is there
        return
    if due is None:
        yield from times.following(row["plan_from"] or datetime.now(UTC))
    else:
        yield due
        yield from times.following(due, due)


def when(row: Row) -> str:
    """Its times in words."""
    from cluster.errors import RecurrenceError

    try:
        return recurrence(row).words()
    except RecurrenceError:
        return row["cron"] or ""


def since(moment: datetime) -> str:
    """in 4m; 2h ago."""
    from cluster.cli.tables import age

    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {age(seconds)}" if seconds >= 0 else f"{age(-seconds)} ago"
