"""`cluster schedule`: looks at the rows of cluster.schedules, and changes them as SQL would."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, LiteralString

import typer

from cluster.cli import schedule_change
from cluster.cli.schedule_rows import find, since
from cluster.schedule_words import ICONS, state_of, upcoming, when

if TYPE_CHECKING:
    from cluster.schedule_words import Row

app = typer.Typer(
    no_args_is_help=True,
    help="Jobs by cron and at intervals.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Show all schedules."""
    from cluster.cli.schedule_rows import all_rows, opened
    from cluster.cli.tables import add_name, new_table, print_json, print_table

    with opened() as connection:
        rows = all_rows(connection)
        service = connection.execute("SELECT reloading_since FROM cluster.schedule_service").fetchone()
    if as_json:
        print_json([plain(row) for row in rows])
        return
    if service is not None and service[0] is not None:
        typer.echo(f"a reload has been running since {local(service[0])}", err=True)
    if not rows:
        typer.echo("there is no schedule: `cluster schedule add` makes one", err=True)
        return
    table = new_table("Schedules")
    table.add_column("", no_wrap=True)
    for header, width in (("name", 14), ("table", 13), ("when", 18), ("last", 9), ("next", 17)):
        add_name(table, header, width)
    for row in rows:
        table.add_row(
            ICONS[state_of(row)], row["name"], row["job_table"], when(row), row["last_outcome"] or "", _next(row)
        )
    print_table(table)
    for row in rows:
        if row["overdue_since"] is not None:
            typer.echo(f"{row['name']}: overdue since {local(row['overdue_since'])}")


def _next(row: Row) -> str:
    """At a time, and how long that is; or why not."""
    if row["next_run_at"] is None:
        return state_of(row).replace("_", " ")
    return f"{row['next_run_at'].astimezone():%d %b %H:%M} {since(row['next_run_at']).removeprefix('in ')}"


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show one schedule and its last occurrences."""
    from psycopg.rows import dict_row

    from cluster.cli.schedule_rows import opened
    from cluster.cli.tables import new_table, print_json, print_table

    with opened() as connection:
        row = find(connection, name)
        runs = connection.cursor(row_factory=dict_row).execute(_RUNS, [name]).fetchall()
    if as_json:
        print_json(plain(row) | {"runs": [plain(run) for run in runs]})
        return
    typer.echo(f"{name}: {ICONS[state_of(row)]} {state_of(row).replace('_', ' ')}, {when(row)}")
    for key, value in row.items():
        if value not in (None, "", {}, False, 0) and key not in {"name", "state"}:
            typer.echo(f"  {key.replace('_', ' ')}: {local(value) if isinstance(value, datetime) else value}")
    table = new_table("Last occurrences")
    for header in ("due", "started", "took", "outcome", "job"):
        table.add_column(header)
    for run in runs:
        cells = (run["due_at"], run["started_at"], run["took"], run["outcome"], run["job_id"])
        table.add_row(
            *("" if cell is None else local(cell) if isinstance(cell, datetime) else str(cell) for cell in cells)
        )
    print_table(table)


_RUNS: LiteralString = """
SELECT due_at, started_at, date_trunc('milliseconds', finished_at - started_at) AS took,
       coalesce(outcome, 'not finished') AS outcome, job_id, finished_at
FROM cluster.schedule_runs WHERE name = %s ORDER BY due_at DESC LIMIT 10
"""


@app.command("next")
def next_(
    name: Name, count: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many.")] = 10, as_json: Json = False
) -> None:
    """Show the next occurrences, in the schedule's time zone, and where the clock is changed."""
    from itertools import islice
    from zoneinfo import ZoneInfo

    from cluster.cli.schedule_rows import opened
    from cluster.cli.tables import print_json

    with opened() as connection:
        row = find(connection, name)
    zone = ZoneInfo(row["time_zone"])
    moments = [moment.astimezone(zone) for moment in islice(upcoming(row), count)]
    if as_json:
        print_json([moment.isoformat() for moment in moments])
        return
    before = datetime.now(zone).utcoffset()
    for moment in moments:
        changed = "" if moment.utcoffset() == before else "  the clock was changed"
        typer.echo(f"{moment:%a %Y-%m-%d %H:%M:%S %z}  {since(moment)}{changed}")
        before = moment.utcoffset()
    if not moments:
        typer.echo(f"{name} is {state_of(row).replace('_', ' ')}: nothing is to come", err=True)


def plain(row: Row) -> dict[str, Any]:
    """As JSON has it: times in ISO 8601, intervals in seconds."""
    from datetime import timedelta

    return {
        key: value.isoformat() if isinstance(value, datetime) else value.total_seconds() if isinstance(value, timedelta) else value
        for key, value in row.items()
    }  # fmt: skip


def local(moment: datetime) -> str:
    """For people, where they are."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


for command in (
    schedule_change.add, schedule_change.edit, schedule_change.remove, schedule_change.activate, schedule_change.deactivate,
    schedule_change.pause, schedule_change.resume, schedule_change.reload, schedule_change.run, schedule_change.backfill,
):  # fmt: skip
    app.command()(command)
