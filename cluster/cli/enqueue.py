"""`cluster enqueue`: one job from `column=value` words, checked as `perform_later` checks it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cluster.columns import Column
    from cluster.job import Job


def enqueue(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The job's class or table.", show_default=False)],
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COLUMN=VALUE",
            help="JSON for lists and objects; column:=JSON for any other.",
            show_default=False,
        ),
    ] = None,
    delay: Annotated[str | None, typer.Option(metavar="TIME", help="Not before this long: 90s, 5m, 1h.")] = None,
    run_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before then: 2030-01-31T12:00:00+00:00.")
    ] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the class's queue.")] = None,
    priority: Annotated[int | None, typer.Option(min=1, max=100, help="Lower runs first.")] = None,
) -> None:
    """Insert one job; prints its table and id.

    cluster enqueue EmailCustomersJob customer_id=42 --delay 5m
    """
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.job_classes import find_job, imported_jobs
    from cluster.job import definition

    if delay is not None and run_at is not None:
        raise typer.BadParameter("give --delay or --run-at, not both", param_hint="--run-at")
    given = {
        "delay": duration(delay, "--delay"),
        "run_at": moment(run_at, "--run-at"),
        "queue": queue,
        "priority": priority,
    }
    words = [split(word) for word in values or []]
    settings = settings_with_database()
    job_class = find_job(name, imported_jobs(settings))
    job = _build(job_class, words)
    with connected(settings.database_url) as connection:
        inserted = job.perform_later(connection, **given)  # type: ignore[arg-type]  # one dict of four types
    typer.echo(f"{definition(job_class).table} {inserted.id}")
    if not inserted.is_new:
        typer.echo("it waits already, and is unique: nothing was inserted", err=True)


def _build(job_class: type[Job], words: list[tuple[str, str, bool]]) -> Job:
    from cluster.job import definition

    columns = {column.name: column for column in definition(job_class).columns}
    return job_class(**{name: _value(columns.get(name), name, text, is_json) for name, text, is_json in words})


def split(word: str) -> tuple[str, str, bool]:
    """Name, text, and whether the text is JSON. Usage error: it is not column=value."""
    name, equals, text = word.partition("=")
    if not equals or not name.rstrip(":"):
        raise typer.BadParameter(f"{word!r} is not column=value", param_hint="COLUMN=VALUE")
    return name.removesuffix(":"), text, name.endswith(":")


def _value(column: Column | None, name: str, text: str, is_json: bool) -> Any:  # Any: pydantic checks it
    if is_json or (column is not None and column.type.name == "jsonb"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"{name} is not JSON: {error}", param_hint="COLUMN=VALUE") from error
    if column is not None and column.type.name == "bigint" and text.lstrip("-").isdecimal():
        return int(text)  # a Literal takes no string
    return text


def duration(text: str | None, option: str) -> timedelta | None:
    """Of an option's value. Usage error: it is none."""
    from pydantic import TypeAdapter, ValidationError

    from cluster.settings import Duration

    if text is None:
        return None
    adapter: TypeAdapter[timedelta] = TypeAdapter(Duration)
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(reason, param_hint=option) from error


def moment(text: str | None, option: str) -> datetime | None:
    """Of an option's value. Usage error: it is none, or has no time zone."""
    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("a time looks like 2030-01-31T12:00:00+00:00", param_hint=option) from error
    if given.utcoffset() is None:
        raise typer.BadParameter(f"a time needs its time zone: {given.isoformat()}Z is in UTC", param_hint=option)
    return given
