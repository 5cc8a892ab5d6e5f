"""`cluster why`: the SQL function of the same name, which says why a job does not run. Reads only; needs no job classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from psycopg import Connection

Row = dict[str, Any]
"""A reason, as `--json` shows it: rank, reason, detail, remedy."""


def why(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The job's class or table.", show_default=False)],
    job_id: Annotated[
        int | None,
        typer.Argument(metavar="ID", help="Default: the job that has waited for longest.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say why a job does not run, the likeliest reason first, and what to do."""
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.job_tables import find_job_table
    from cluster.cli.tables import print_json
    from cluster.migration import check_schema

    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        oid, table = find_job_table(connection, name)
        if job_id is None:
            job_id = _oldest(connection, oid)
        reasons = _reasons(connection, oid, job_id)
    if as_json:
        print_json({"table": table, "id": job_id, "reasons": reasons})
    else:
        _print(f"table {table}" if job_id is None else f"{table} {job_id}", reasons)


def _oldest(connection: Connection[Any], oid: int) -> int | None:
    """None: none waits, or the table is locked, which is a reason by itself."""
    import psycopg

    try:
        row = connection.execute("SELECT cluster.oldest_waiting_job(%s::oid)", [oid]).fetchone()
    except psycopg.errors.LockNotAvailable:
        return None
    return None if row is None else row[0]


def _reasons(connection: Connection[Any], oid: int, job_id: int | None) -> list[Row]:
    from psycopg.rows import dict_row

    query = "SELECT rank, reason, detail, remedy FROM cluster.why(%s::oid, %s) ORDER BY rank"
    return connection.cursor(row_factory=dict_row).execute(query, [oid, job_id]).fetchall()


def _print(title: str, reasons: list[Row]) -> None:
    """No line is longer than the terminal, 80 columns where there is none; a word that is stays whole, to be copied."""
    import shutil
    import textwrap

    wrap = textwrap.TextWrapper(
        shutil.get_terminal_size((80, 24)).columns - 3,
        subsequent_indent="   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    typer.secho(title, bold=True)
    for row in reasons:
        head = f"{row['rank']}. {row['reason'].replace('_', ' ')}:"
        text = wrap.fill(f"{head} {row['detail']}")
        typer.echo(text.replace(head, typer.style(head, bold=True), 1))
        typer.echo(f"   {wrap.fill(row['remedy'])}")
