"""`cluster migrate`: schema `cluster`, then the tables of the imported jobs. Says what it did in words, not in SQL."""

from __future__ import annotations

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
    from cluster.migration import planned_changes
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
    """Each sentence is printed as soon as it is true: what comes next may fail."""
    from cluster.differences import differences
    from cluster.migrating import steps

    has_done = False
    for sentence in steps(connection, job_classes, modules, _say, adopt=adopt):
        typer.echo(sentence)
        has_done = True
    differing = differences(connection, job_classes)
    if not has_done and not differing:
        typer.echo("nothing to do")
    for difference in differing:
        typer.echo(f"left as it is: {difference}")


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)
