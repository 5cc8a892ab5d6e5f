"""`cluster pause` and `cluster resume`: the SQL functions of the same names, for a job type, a queue or everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from psycopg import Connection

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="A job's class or table.", show_default=False)]
Queue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="A queue, of all job types.")]
Everything = Annotated[bool, typer.Option("--all", help="Everything, also job types that come later.")]


def pause(
    name: Name = None,
    queue: Queue = None,
    everything: Everything = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Shown wherever one looks.")] = None,
) -> None:
    """Let nothing begin of a job type, a queue or everything. What runs goes on."""
    _change("pause", name, queue, everything=everything, reason=reason)


def resume(name: Name = None, queue: Queue = None, everything: Everything = False) -> None:
    """End a pause.

    What was paused by itself stays paused when everything is resumed.
    """
    _change("resume", name, queue, everything=everything, reason=None)


def _change(function: str, name: str | None, queue: str | None, *, everything: bool, reason: str | None) -> None:
    from cluster.cli.audit import note
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.job_tables import find_job_table
    from cluster.migration import check_schema

    if (name is not None) + (queue is not None) + everything != 1:
        raise typer.BadParameter("give one of: a job's name, --queue or --all", param_hint="NAME")
    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        if queue is not None:
            what, shown = "%s::text", f"queue {queue}"
            argument: Any = queue
        elif name is not None:
            argument, shown = find_job_table(connection, name)
            what, shown = "%s::oid::regclass", f"table {shown}"
        else:
            what, argument, shown = "%s::regclass", None, "everything"
        before = _paused(connection, queue, argument)
        arguments = [argument, reason] if function == "pause" else [argument]
        words = f"{what}, %s" if function == "pause" else what
        with connection.transaction():
            connection.execute(f"SELECT cluster.{function}({words})".encode(), arguments)
            if (before is None) == (function == "pause"):
                target = f"queue {queue or '*'}" if name is None else _type_of(connection, argument)
                note(connection, function, target, {"reason": reason} if reason else None)
        typer.echo(f"{shown}: {_words(function, before, _paused(connection, queue, argument))}")
        if function == "resume" and not everything:
            _tell_of_other_pauses(connection, queue)


def _type_of(connection: Connection[Any], table: int) -> str:
    row = connection.execute("SELECT name FROM cluster.job_types WHERE job_table = %s::oid", [table]).fetchone()
    return str(table) if row is None else row[0]


def _paused(connection: Connection[Any], queue: str | None, table: int | None) -> tuple[str, str | None] | None:
    """Since when, and why. None: it is not."""
    query = "SELECT paused_at::text, paused_reason FROM cluster.{} AND paused_at IS NOT NULL"
    if queue is None and table is not None:
        return connection.execute(query.format("job_types WHERE job_table = %s::oid").encode(), [table]).fetchone()
    return connection.execute(query.format("queues WHERE name = %s").encode(), [queue or "*"]).fetchone()


def _words(function: str, before: tuple[str, str | None] | None, after: tuple[str, str | None] | None) -> str:
    if function == "resume":
        return "was not paused" if before is None else "resumed"
    assert after is not None
    reason = f": {after[1]}" if after[1] else ""
    return f"paused{reason}" if before is None else f"paused already, since {after[0]}{reason}"


def _tell_of_other_pauses(connection: Connection[Any], queue: str | None) -> None:
    """A resumed type waits all the same if its queue is paused, and the other way round."""
    if queue is None:
        query = "SELECT string_agg(name, ', ' ORDER BY name) FROM cluster.queues WHERE paused_at IS NOT NULL AND name <> '*'"
        what = "queues"
    else:
        query, what = (
            "SELECT string_agg(name, ', ' ORDER BY name) FROM cluster.job_types WHERE paused_at IS NOT NULL",
            "job types",
        )
    row = connection.execute(query.encode()).fetchone()
    if row is not None and row[0] is not None:
        typer.echo(f"{what} that are paused: {row[0]}", err=True)
