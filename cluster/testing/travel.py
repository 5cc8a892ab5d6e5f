"""Time for tests: the clock of a database can't be moved, so its rows are moved the other way. Only for databases of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import psycopg
from psycopg import Connection, sql

from cluster.errors import ClusterError

Database: TypeAlias = str | Connection[Any]
"""A URL, for committed rows; or a psycopg connection, in whose transaction everything is done, if it is not in autocommit."""


def travel(database: Database, by: timedelta) -> None:
    """It is later by so much: jobs and schedules become due, and what has finished is older. Jobs that run are left alone."""
    given: Any = by  # callers without a type checker give anything
    if not isinstance(given, timedelta) or given <= timedelta(0):
        raise ClusterError(f"by is a timedelta above zero, not {by!r}: nobody travels back")
    with connected(database) as connection:
        before = travelled(connection)
        for table in job_tables(connection):
            connection.execute(_JOBS.format(table=table), {"by": by})
        connection.execute(_SCHEDULES, {"by": by})
        _remember(connection, before + by)


def travelled(connection: Connection[Any]) -> timedelta:
    """By how much in all, since `forget_travels`."""
    row = connection.execute(_TRAVELLED).fetchone()
    return timedelta() if row is None else timedelta(seconds=float(row[0]))


def forget_travels(connection: Connection[Any]) -> None:
    """For another test on the same database."""
    if travelled(connection):
        _remember(connection, timedelta())


@contextmanager
def connected(database: Database) -> Iterator[Connection[Any]]:
    """One to a URL is in autocommit."""
    if isinstance(database, str):
        with psycopg.connect(database, autocommit=True, client_encoding="utf-8") as connection:
            yield connection
    elif isinstance(database, Connection):
        yield database
    else:
        raise ClusterError(f"database is a URL or a psycopg connection, not a {type(database).__name__}")


def job_tables(connection: Connection[Any]) -> list[sql.SQL]:
    """All that are registered, quoted."""
    return [sql.SQL(name) for (name,) in connection.execute("SELECT job_table::text FROM cluster.job_types ORDER BY 1")]


_JOBS = sql.SQL("""
UPDATE {table} SET
    run_at = CASE WHEN finished_at IS NULL THEN run_at - %(by)s ELSE run_at END,
    created_at = created_at - %(by)s, started_at = started_at - %(by)s, finished_at = finished_at - %(by)s
WHERE status <> 'running'""")
_SCHEDULES = """
UPDATE cluster.schedules SET
    next_due_at = next_due_at - %(by)s, next_run_at = next_run_at - %(by)s, plan_from = plan_from - %(by)s,
    last_run_at = last_run_at - %(by)s, not_before = not_before - %(by)s, expect_from = expect_from - %(by)s,
    overdue_since = overdue_since - %(by)s"""
_TRAVELLED = """
SELECT substr(setting, length('cluster.travelled=') + 1)
FROM pg_db_role_setting CROSS JOIN unnest(setconfig) AS setting
WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND starts_with(setting, 'cluster.travelled=')"""


def _remember(connection: Connection[Any], total: timedelta) -> None:
    """With the database, not in a table: cron goes by the wall clock, so who fires a schedule has to know."""
    statement = "ALTER DATABASE {} SET cluster.travelled = {}" if total else "ALTER DATABASE {} RESET cluster.travelled"
    parts: list[sql.Composable] = [sql.Identifier(connection.info.dbname)]
    parts += [sql.Literal(str(total.total_seconds()))] if total else []
    connection.execute(sql.SQL(statement).format(*parts))
