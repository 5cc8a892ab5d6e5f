"""Rows of cluster.schedules for the commands: found by name, and put into words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from psycopg import Connection

    from cluster.schedule_words import Row

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


def since(moment: datetime) -> str:
    """in 4m; 2h ago."""
    from cluster.cli.tables import age

    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {age(seconds)}" if seconds >= 0 else f"{age(-seconds)} ago"
