"""`cluster cancel` and `cluster retry`: the SQL functions of the same names, for one id or many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from psycopg import Connection

Where = Annotated[str, typer.Argument(metavar="NAME", help="The job's class or table.", show_default=False)]
Ids = Annotated[list[int], typer.Argument(metavar="ID", help="Ids of rows.", show_default=False)]


def cancel(name: Where, ids: Ids) -> None:
    """End jobs that wait or run.

    A job that waits ends at once, one that runs as soon as its node has stopped it.
    """
    _change("cancel", name, ids)


def retry(name: Where, ids: Ids) -> None:
    """Run finished jobs again, with attempts from 0."""
    _change("retry", name, ids)


_STATEMENTS: dict[str, Literal["SELECT cluster.cancel(%s, %s)::text", "SELECT cluster.retry(%s, %s)::text"]] = {
    "cancel": "SELECT cluster.cancel(%s, %s)::text",
    "retry": "SELECT cluster.retry(%s, %s)::text",
}


def _change(function: str, name: str, ids: list[int]) -> None:
    import psycopg

    from cluster.cli.database import connected, settings_with_database
    from cluster.migrate import check_schema

    unknown: list[str] = []
    refused: list[str] = []
    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        oid, table = _job_table(connection, name)
        for job_id in ids:
            try:
                row = connection.execute(_STATEMENTS[function], [oid, job_id]).fetchone()
            except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.NumericValueOutOfRange) as error:
                refused.append(str(error.diag.message_primary))
                continue
            status = row[0] if row else None
            if status is None:
                unknown.append(str(job_id))
            else:
                typer.echo(f"{table} {job_id}: {_words(function, status)}")
    if unknown:
        refused.insert(0, f"table {table} has no job {', '.join(unknown)}")
    if refused:
        raise ClusterError("; ".join(refused))


def _words(function: str, status: str) -> str:
    return "running, asked to stop" if (function, status) == ("cancel", "running") else status


_JOB_TABLES = """
SELECT t.name, c.oid, c.oid::regclass::text, c.relname::text, n.nspname || '.' || c.relname
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
"""


def _job_table(connection: Connection[Any], name: str) -> tuple[int, str]:
    """The table's oid, and its name. It is found by the class's name, or by its own with or without the schema."""
    from cluster.cli.job_classes import did_you_mean

    rows = connection.execute(_JOB_TABLES).fetchall()
    known = {key: (oid, shown) for class_name, oid, shown, *names in rows for key in (class_name, shown, *names)}
    if name not in known:
        listed = [row[0] for row in rows]
        raise ClusterError(f"there is no job table {name!r}{did_you_mean(name, known, listed)}")
    return known[name]
