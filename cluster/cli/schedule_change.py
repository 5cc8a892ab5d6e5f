"""The commands of `cluster schedule` that change something."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.schedule_rows import find, opened
from cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

    from cluster.schedule_words import Row

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)]
Values = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="COLUMN=VALUE", help="Of the job; column:=JSON for JSON, null included.", show_default=False
    ),
]
Cron = Annotated[str | None, typer.Option(metavar="FIELDS", help='Five fields, as in "0 5 * * *"; H; or @daily.')]
Every = Annotated[str | None, typer.Option(metavar="TIME", help="Instead: 90s, 5m, 1h.")]
Zone = Annotated[str | None, typer.Option("--time-zone", metavar="ZONE", help="Of the cron: Europe/Berlin.")]
Starts = Annotated[str | None, typer.Option("--starts-at", metavar="TIME", help="2030-01-31T12:00:00+00:00.")]
Ends = Annotated[str | None, typer.Option("--ends-at", metavar="TIME", help="Likewise.")]
Jitter = Annotated[str | None, typer.Option(metavar="TIME", help="Each run by up to this much later.")]
Overlap = Annotated[str | None, typer.Option(help="skip, queue_one, allow or cancel_running.")]
Misfire = Annotated[str | None, typer.Option(help="After a time without nodes: skip, one or all.")]
Expect = Annotated[
    str | None, typer.Option("--expect-within", metavar="TIME", help="Overdue without a success by then.")
]
OnError = Annotated[str | None, typer.Option("--on-error", help="deactivate or keep.")]
RunOnce = Annotated[bool | None, typer.Option("--run-once/--not-once", help="Once after each start of the cluster.")]


def add(
    name: Name,
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's class or table.", show_default=False)],
    values: Values = None, cron: Cron = None, every: Every = None, time_zone: Zone = None, starts_at: Starts = None,
    ends_at: Ends = None, jitter: Jitter = None, overlap: Overlap = None, misfire: Misfire = None, expect_within: Expect = None,
    on_error: OnError = None, run_once: RunOnce = None,
) -> None:  # fmt: skip
    """Make a schedule.

    cluster schedule add report ReportJob kind=daily --cron "0 5 * * *" --time-zone Europe/Berlin
    """
    given = _given(
        cron, every, time_zone, starts_at, ends_at, jitter, overlap, misfire, expect_within, on_error, run_once
    )
    if (cron is None) == (every is None):
        raise typer.BadParameter("give one of --cron and --every", param_hint="--cron")
    from psycopg import sql
    from psycopg.types.json import Jsonb

    from cluster.cli.job_tables import find_job_table

    with opened() as connection:
        oid, _ = find_job_table(connection, job)
        row = {"name": name, "job_table": oid, "job_values": Jsonb(_values(connection, oid, values)), **given}
        _check_times({"time_zone": "UTC", **row})
        query = sql.SQL("INSERT INTO cluster.schedules ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join([sql.Placeholder()] * len(row))
        )
        with _noted(connection, "create", name, {"columns": sorted(given)}):
            connection.execute(query, list(row.values()))
        _tell(connection, name, "added")


def edit(
    name: Name, values: Values = None, cron: Cron = None, every: Every = None, time_zone: Zone = None, starts_at: Starts = None,
    ends_at: Ends = None, jitter: Jitter = None, overlap: Overlap = None, misfire: Misfire = None, expect_within: Expect = None,
    on_error: OnError = None, run_once: RunOnce = None,
) -> None:  # fmt: skip
    """Change what is given, and leave the rest. Its next run stays, unless its times change."""
    given = _given(
        cron, every, time_zone, starts_at, ends_at, jitter, overlap, misfire, expect_within, on_error, run_once
    )
    if cron is not None and every is not None:
        raise typer.BadParameter("give one of --cron and --every", param_hint="--cron")
    given |= {"every": None} if cron is not None else {"cron": None} if every is not None else {}
    from psycopg import sql
    from psycopg.types.json import Jsonb

    with opened() as connection:
        row = find(connection, name)
        _refuse_code(row, "edited")
        if values:
            ((oid,),) = connection.execute("SELECT job_table::oid FROM cluster.schedules WHERE name = %s", [name])
            given["job_values"] = Jsonb(row["job_values"] | _values(connection, oid, values))
        if not given:
            raise typer.BadParameter("say what to change", param_hint="NAME")
        _check_times(row | given)
        assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in given)
        query = sql.SQL("UPDATE cluster.schedules SET {} WHERE name = %s").format(assignments)
        with _noted(connection, "edit", name, {"columns": sorted(given)}):
            connection.execute(query, [*given.values(), name])
        _tell(connection, name, "changed")


def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a schedule. Its history stays, and so do its jobs."""
    from cluster.cli.selection import ask

    with opened() as connection:
        _refuse_code(find(connection, name), "removed")
        ask(f"remove schedule {name}?", yes=yes)
        with _noted(connection, "delete", name):
            connection.execute("DELETE FROM cluster.schedules WHERE name = %s", [name])
    typer.echo(f"{name}: removed")


def activate(name: Name) -> None:
    """Let a schedule run again, whatever has stopped it; a pause lasts."""
    _set(name, "activate", "active = true", "active")


def deactivate(name: Name) -> None:
    """Let a schedule run no more until it is activated."""
    _set(name, "deactivate", "active = false", "deactivated")


def pause(
    name: Name, reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Shown wherever one looks.")] = None
) -> None:
    """Let a schedule wait until it is resumed. What comes due meanwhile is left out."""
    _set(name, "pause", "paused_at = coalesce(paused_at, now()), paused_reason = %s", "paused", reason)


def resume(name: Name) -> None:
    """End a pause."""
    _set(name, "resume", "paused_at = NULL, paused_reason = NULL", "resumed")


def run(name: Name) -> None:
    """Insert a schedule's job now. Its next run stays where it is."""
    with opened() as connection:
        row = find(connection, name)
        with _noted(connection, "run", name):
            ((job_id,),) = connection.execute("SELECT cluster.run_schedule(%s)", [name]).fetchall()
    typer.echo(f"{row['job_table']} {job_id}")


def reload() -> None:
    """Read the schedules of the job classes anew, and let go on what has stopped until then.

    A schedule that has not changed keeps its next run.
    """
    from cluster.cli.audit import note
    from cluster.cli.database import settings_with_database
    from cluster.cli.job_classes import imported_jobs
    from cluster.schedule_rows import reload_schedules

    settings = settings_with_database()
    job_classes = imported_jobs(settings) if settings.jobs else []
    with opened() as connection:
        changed, going_on = reload_schedules(connection, job_classes, settings.jobs)
        note(connection, "reload", "schedules", {"changed": changed})
    typer.echo(f"reloaded: {changed} changed, {going_on} go on that had stopped")


def backfill(
    name: Name,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="2030-01-31T12:00:00+00:00.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Likewise.")],
    missing: Annotated[bool, typer.Option("--missing", help="Those without a job; the default.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Those whose job has failed.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Both.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show them.")] = False,
) -> None:
    """Run occurrences of the past. Those that have run are left alone."""
    from cluster.cli.enqueue import moment
    from cluster.schedule_words import between

    if missing + failed + everything > 1:
        raise typer.BadParameter("give one of --missing, --failed and --all", param_hint="--missing")
    first, last = moment(start, "--from"), moment(end, "--to")
    assert first is not None
    assert last is not None
    which = "all" if everything or (failed and missing) else "failed" if failed else "missing"
    with opened() as connection:
        row = find(connection, name)
        dues = between(row, first, last)
        chosen = {"which": which, "from": start, "to": end}
        with nullcontext() if dry_run else _noted(connection, "backfill", name, chosen):
            found = connection.execute(
                "SELECT * FROM cluster.backfill_schedule(%s, %s, %s, %s)", [name, dues, which, dry_run]
            ).fetchall()
        for due_at, job_id in found:
            inserted = "" if dry_run else f"  {row['job_table']} {job_id}"
            typer.echo(f"{due_at.astimezone():%Y-%m-%d %H:%M:%S %z}{inserted}")


def _given(
    cron: str | None, every: str | None, time_zone: str | None, starts_at: str | None, ends_at: str | None, jitter: str | None,
    overlap: str | None, misfire: str | None, expect_within: str | None, on_error: str | None, run_once: bool | None,
) -> dict[str, Any]:  # fmt: skip
    """Columns of the options that were given. Usage error: one is no time."""
    from cluster.cli.enqueue import duration, moment
    from cluster.recurrence import NEVER

    columns = {
        "cron": cron, "every": duration(every, "--every"), "time_zone": time_zone, "starts_at": moment(starts_at, "--starts-at"),
        "ends_at": moment(ends_at, "--ends-at"), "jitter": NEVER if jitter == "0" else duration(jitter, "--jitter"),
        "overlap": overlap, "misfire": misfire,
        "expect_within": duration(expect_within, "--expect-within"), "on_error": on_error, "run_once": run_once,
    }  # fmt: skip
    return {column: value for column, value in columns.items() if value is not None}


def _values(connection: Connection[Any], table: int, words: list[str] | None) -> dict[str, Any]:
    """column=value: the table knows the type. Usage error: no such word, or what should be JSON is not."""
    import json

    from cluster.cli.enqueue import split

    found: dict[str, Any] = {}
    for name, text, is_json in map(split, words or []):
        kind = connection.execute(
            "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %s AND attname = %s", [table, name]
        ).fetchone()
        try:
            found[name] = json.loads(text) if is_json or kind in {("jsonb",), ("json",)} else text
        except ValueError as error:
            raise typer.BadParameter(f"{name} is not JSON: {error}", param_hint="COLUMN=VALUE") from error
    return found


def _check_times(row: Row) -> None:
    """RecurrenceError: names the field of a cron, and what is allowed there."""
    from datetime import timedelta

    from cluster.schedule_words import recurrence

    optional = dict.fromkeys(("cron", "every", "starts_at", "ends_at"))
    recurrence({"jitter": timedelta(0), **optional, **row})


def _refuse_code(row: Row, verb: str) -> None:
    if row["source"] == "code":
        raise ClusterError(
            f"schedule {row['name']} belongs to its job class, and would be written back: it can be paused and deactivated here;"
            f" to be {verb}, change the class and migrate"
        )


def _set(name: str, action: str, assignments: str, done: str, *parameters: object) -> None:
    with opened() as connection:
        find(connection, name)
        query = f"UPDATE cluster.schedules SET {assignments} WHERE name = %s"  # noqa: S608 - constants of this module
        with _noted(connection, action, name, {"reason": parameters[0]} if any(parameters) else None):
            connection.execute(query.encode(), [*parameters, name])
        _tell(connection, name, done)


@contextmanager
def _noted(connection: Connection[Any], action: str, name: str, chosen: dict[str, Any] | None = None) -> Iterator[None]:
    """What is done inside, and a row of the audit, in one transaction."""
    from cluster.cli.audit import note

    with connection.transaction():
        yield
        note(connection, action, f"schedule {name}", chosen)


def _tell(connection: Connection[Any], name: str, done: str) -> None:
    """With its next run, as far as that is known: of a cron a node finds it."""
    from itertools import islice

    from cluster.cli.schedule_rows import since
    from cluster.schedule_words import upcoming, when

    row = find(connection, name)
    first = next(islice(upcoming(row), 1), None)
    runs = "" if first is None else f"; next {first.astimezone():%Y-%m-%d %H:%M:%S %z}, {since(first)}"
    typer.echo(f"{name}: {done}; {when(row)}{runs}")
