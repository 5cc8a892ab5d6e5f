"""`cluster cancel` and `cluster retry`: the SQL functions of the same names, for ids or for all rows with something in common."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cluster.cli.selection import Error, Queue, Since, Statuses, Yes, ask, chosen_statuses
from cluster.errors import ClusterError
from cluster.selection import EACH, FINISHED, WAITING, JobTable, Selection, in_words

if TYPE_CHECKING:
    from psycopg import Connection

Where = Annotated[str, typer.Argument(metavar="NAME", help="The job's class or table.", show_default=False)]
Ids = Annotated[list[int] | None, typer.Argument(metavar="ID", help="Ids of rows.", show_default=False)]
Function = Literal["cancel", "retry"]


def cancel(
    name: Where, ids: Ids = None, status: Statuses = None, queue: Queue = None, error: Error = None, since: Since = None,
    yes: Yes = False,
) -> None:  # fmt: skip
    """End jobs that wait or run: by id, or all with something in common.

    A job that waits ends at once, one that runs as soon as its node has stopped it.
    """
    statuses = chosen_statuses(status, (*WAITING, "running"), "cancelled")
    _change(
        "cancel", name, ids, Selection(statuses, queue, error, _duration(since)), filtered=status is not None, yes=yes
    )


def retry(
    name: Where, ids: Ids = None, status: Statuses = None, queue: Queue = None, error: Error = None, since: Since = None,
    yes: Yes = False,
) -> None:  # fmt: skip
    """Run finished jobs again, with attempts from 0: by id, or all with something in common."""
    statuses = chosen_statuses(status, FINISHED, "retried")
    _change(
        "retry", name, ids, Selection(statuses, queue, error, _duration(since)), filtered=status is not None, yes=yes
    )


def _duration(text: str | None) -> Any:
    from cluster.cli.enqueue import duration

    return duration(text, "--since")


def _change(
    function: Function, name: str, ids: list[int] | None, chosen: Selection, *, filtered: bool, yes: bool
) -> None:
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.job_tables import find_job_table
    from cluster.migration import check_schema

    filtered = filtered or any(option is not None for option in (chosen.queue, chosen.error, chosen.since))
    if bool(ids) == filtered:
        raise typer.BadParameter("give ids, or say which: --status, --queue, --error, --since", param_hint="ID")
    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        table = JobTable(*find_job_table(connection, name))
        if ids:
            _change_each(function, connection, table, ids)
        else:
            _change_all(function, connection, table, chosen, yes=yes)


_ONE: dict[Function, Literal["SELECT cluster.cancel(%s, %s)::text", "SELECT cluster.retry(%s, %s)::text"]] = {
    "cancel": "SELECT cluster.cancel(%s, %s)::text",
    "retry": "SELECT cluster.retry(%s, %s)::text",
}


_CHANGED = ("cancelled", "running", "not_started")
"""Statuses that a row may have when something was done to it."""


def _change_each(function: Function, connection: Connection[Any], table: JobTable, ids: list[int]) -> None:
    import psycopg

    from cluster.cli.audit import note

    unknown: list[str] = []
    refused: list[str] = []
    for job_id in ids:
        try:
            with connection.transaction():
                row = connection.execute(_ONE[function], [table.oid, job_id]).fetchone()
                if row is not None and row[0] in _CHANGED:
                    note(connection, function, f"{table.name} {job_id}", count=1)
        except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.NumericValueOutOfRange) as error:
            refused.append(str(error.diag.message_primary))
            continue
        status = row[0] if row else None
        if status is None:
            unknown.append(str(job_id))
        else:
            typer.echo(f"{table.name} {job_id}: {_word(function, status)}")
    if unknown:
        refused.insert(0, f"table {table.name} has no job {', '.join(unknown)}")
    if refused:
        raise ClusterError("; ".join(refused))


def _change_all(
    function: Function, connection: Connection[Any], table: JobTable, chosen: Selection, *, yes: bool
) -> None:
    from cluster.cli.audit import noted

    counts = table.counts(connection, chosen)
    if not counts:
        typer.echo(f"table {table.name}: no such jobs")
        return
    ask(f"{function} {counts.total():,} jobs of table {table.name} ({in_words(counts)})?", yes=yes)
    with noted(connection, f"{function} all", table.name, chosen) as tell:
        done = table.change(connection, chosen, EACH[function], tell)
    said = Counter({_word(function, word): count for word, count in done.items()})
    typer.echo(f"table {table.name}: {in_words(said) or 'no such jobs any more'}")


def _word(function: str, status: str) -> str:
    if status == "busy":
        return "left, since somebody holds them"
    return "running, asked to stop" if (function, status) == ("cancel", "running") else status
