"""`cluster migrate`: schema `cluster`, then the tables of the imported jobs. Says what it did in words, not in SQL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

    from cluster.job import Job


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL and change nothing.")] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="This database is a copy, or was moved: nodes may run its jobs.")
    ] = False,
) -> None:
    """Create or update schema cluster and the job tables.

    Only adds: what a class no longer has stays in its table.
    """
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.job_classes import imported_jobs

    settings = settings_with_database()
    job_classes = imported_jobs(settings) if settings.jobs else []
    if not settings.jobs:
        typer.echo("no jobs package here and CLUSTER_JOBS is not set: schema cluster only", err=True)
    with connected(settings.direct_database_url) as connection:
        if dry_run:
            _print_plan(connection, job_classes, settings.jobs, adopt=adopt)
        else:
            _apply(connection, job_classes, settings.jobs, adopt=adopt)


def _print_plan(
    connection: Connection[Any], job_classes: list[type[Job]], modules: Sequence[str], *, adopt: bool
) -> None:
    from cluster import identity
    from cluster.migrate import planned_changes
    from cluster.schedule_rows import left_schedules

    planned = planned_changes(connection, job_classes)
    planned += [
        left.removal.as_string(connection)
        for left in left_schedules(connection, modules, job_classes)
        if not left.is_served
    ]
    if adopt and identity.is_recorded(connection) and identity.difference(connection):
        planned.append(identity.adopt_statement(connection))
    if not planned:
        typer.echo("nothing to do", err=True)
    for statement in planned:
        typer.echo(f"{statement.strip().removesuffix(';')};\n")


def _apply(connection: Connection[Any], job_classes: list[type[Job]], modules: Sequence[str], *, adopt: bool) -> None:
    from cluster import identity, tables
    from cluster.differences import differences
    from cluster.job import definition
    from cluster.migrate import migrate_jobs, migrate_schema
    from cluster.schedule_rows import left_schedules

    connection.execute("SET default_transaction_read_only = off")  # a default of the role's, not a refusal
    done = [f"schema cluster: {name}" for name in migrate_schema(connection, _say)]
    if adopt and identity.adopt(connection):
        done.append("this database is no copy any more: nodes may run its jobs")
    elif copied := identity.difference(connection):
        _say(f"nodes will not start: {copied}")
    for left in left_schedules(connection, modules, job_classes):  # first: a new name for a class must not run twice
        if not left.is_served:
            connection.execute(left.removal)
        done.append(left.sentence())
    for job_class in job_classes:
        table = definition(job_class).table
        is_new = tables.existing_columns(connection, table) is None
        statements = migrate_jobs(connection, [job_class], _say)
        done += [f"table {table}: created"] if is_new else _sentences(table, statements)
    differing = differences(connection, job_classes)
    for line in done or ([] if differing else ["nothing to do"]):
        typer.echo(line)
    for difference in differing:
        typer.echo(f"left as it is: {difference}")


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


_COLUMN = re.compile(
    r'ALTER TABLE \S+ (?P<what>ADD|ALTER) COLUMN "(?P<column>[^"]*)"(?: SET DEFAULT (?P<default>.*))?', re.DOTALL
)


def _sentences(table: str, statements: list[str]) -> list[str]:
    """What `migrate_jobs` ran on a table that was there, in words."""
    said = []
    for statement in statements:
        if match := _COLUMN.match(statement):
            what = f"default is now {match['default']}" if match["what"] == "ALTER" else "added"
            said.append(f"table {table}: column {match['column']}: {what}")
        elif "cluster.schedules" in statement:
            said.append(f"table {table}: schedules updated")
        elif "cluster.job_types" in statement:
            said.append(f"table {table}: options updated")
        else:
            said.append(f"table {table}: completed")
    return list(dict.fromkeys(said))
