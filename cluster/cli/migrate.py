"""`cluster migrate`: schema `cluster`, then the tables of the imported jobs. Says what it did in words, not in SQL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from psycopg import Connection

    from cluster.job import Job


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL and change nothing.")] = False,
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
            _print_plan(connection, job_classes)
        else:
            _apply(connection, job_classes)


def _print_plan(connection: Connection[Any], job_classes: list[type[Job]]) -> None:
    from cluster.migrate import planned_changes

    planned = planned_changes(connection, job_classes)
    if not planned:
        typer.echo("nothing to do", err=True)
    for statement in planned:
        typer.echo(f"{statement.strip().removesuffix(';')};\n")


def _apply(connection: Connection[Any], job_classes: list[type[Job]]) -> None:
    from cluster import tables
    from cluster.job import definition
    from cluster.migrate import migrate_jobs, migrate_schema

    done = [f"schema cluster: {name}" for name in migrate_schema(connection)]
    names = [definition(job_class).table for job_class in job_classes]
    missing = {name for name in names if tables.existing_columns(connection, name) is None}
    done += _sentences(migrate_jobs(connection, job_classes), missing)
    for line in done or ["nothing to do"]:
        typer.echo(line)


_CREATE = re.compile(r"SELECT cluster\.create_job_table\('(?P<table>.*)'\)")
_ALTER = re.compile(
    r'ALTER TABLE (?P<table>\S+) (?P<what>ADD|ALTER) COLUMN "(?P<column>[^"]*)"(?: SET DEFAULT (?P<default>.*))?',
    re.DOTALL,
)


def _sentences(statements: list[str], missing: set[str]) -> list[str]:
    """What `migrate_jobs` ran, without what goes without saying of a table that was missing."""
    said = []
    for statement in statements:
        if match := _CREATE.match(statement):
            table = match["table"].replace('"', "")
            said.append(f"table {table}: {'created' if table in missing else 'completed'}")
        elif match := _ALTER.match(statement):
            table = match["table"].replace('"', "")
            if table not in missing:
                what = f"default is now {match['default']}" if match["what"] == "ALTER" else "added"
                said.append(f"table {table}: column {match['column']}: {what}")
        elif not any(f"'\"{table}\"'" in statement for table in missing):
            said.append("cluster.job_types: options updated")
    return list(dict.fromkeys(said))
