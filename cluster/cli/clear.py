"""`cluster clear`: deletes rows of job tables, after it has said how many."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Annotated

import typer

from cluster.cli.selection import Older, Queue, Statuses, Yes, ask, chosen_statuses
from cluster.selection import EACH, STATUSES, JobTable, Selection, in_words


def clear(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A job's class or table.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of all job tables.")] = False,
    status: Statuses = None,
    queue: Queue = None,
    older: Older = None,
    force: Annotated[bool, typer.Option("--force", help="Jobs that run, too: they are stopped.")] = False,
    yes: Yes = False,
) -> None:
    """Delete jobs: of one table or of all, and of these only those of a status, a queue or an age.

    Jobs that run stay, unless --force is given.
    """
    from cluster.cli.audit import noted
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.enqueue import duration
    from cluster.cli.job_tables import find_job_table, list_job_tables
    from cluster.migration import check_schema

    if (name is not None) == everything:
        raise typer.BadParameter("give a job's name, or --all", param_hint="NAME")
    possible = STATUSES if force else [each for each in STATUSES if each != "running"]
    if not force and "running" in (status or []):
        raise typer.BadParameter("a job that is running can't be deleted without --force", param_hint="--status")
    chosen = Selection(chosen_statuses(status, possible, "deleted"), queue, older=duration(older, "--older"))
    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        found = list_job_tables(connection) if name is None else [find_job_table(connection, name)]
        tables = [JobTable(*table) for table in found]
        counts = [table.counts(connection, chosen) for table in tables]
        for table, count in zip(tables, counts, strict=True):
            if count:
                typer.echo(f"table {table.name}: {in_words(count)}")
        running = replace(chosen, statuses=("running",))
        if not force and not status and (busy := sum(table.counts(connection, running).total() for table in tables)):
            typer.echo(f"{busy:,} that run stay: --force deletes those too", err=True)
        total = sum(count.total() for count in counts)
        if not total:
            typer.echo("no such jobs")
            return
        ask(f"delete {total:,} jobs?", yes=yes)
        done = Counter[str]()
        for table in tables:
            with noted(connection, "delete all", table.name, chosen) as tell:
                done += table.change(connection, chosen, EACH["delete"], tell)
    left = f", {done['busy']:,} left, since somebody holds them" if done["busy"] else ""
    typer.echo(f"{done['deleted']:,} deleted{left}")
