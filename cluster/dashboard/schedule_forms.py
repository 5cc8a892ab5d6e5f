"""The form of a schedule: what is in it, what was sent, what is wrong with which field, and how it is saved.

Writes one row of cluster.schedules. The fields for the job's columns are those of `forms`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter, ValidationError

from cluster.dashboard import forms, related
from cluster.dashboard.actions import note
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column, JobTable
from cluster.errors import RecurrenceError
from cluster.recurrence import NEVER, Recurrence
from cluster.schedule_words import Row
from cluster.settings import Duration

_DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


@dataclass
class Input:
    """One of the schedule's own columns. kind: text, choice, duration, moment or flag.

    now: what somebody else has made of it meanwhile.
    """

    name: str
    label: str
    help: str
    kind: str = "text"
    choices: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    problem: str = ""
    now: str | None = None


def _inputs() -> dict[str, Input]:
    inputs = (
        Input("name", "Name", "What people call it: 1 to 128 characters. H in a cron is spread by it."),
        Input("cron", "Cron", "Minute, hour, day of month, month, day of week: 0 5 * * 1-5 is 5:00 on weekdays. H for a minute of"
              " its own choice, L for the last day, @daily. Leave it empty for an interval."),
        Input("every", "Or every", "An interval instead of a cron: 90s, 5m, 1h, 2d.", "duration"),
        Input("time_zone", "Time zone", "In which the cron and the two times below are meant: Europe/Berlin."),
        Input("starts_at", "Not before", "Nothing is due before this. An interval counts from here.", "moment"),
        Input("ends_at", "Not after", "Nothing is due after this.", "moment"),
        Input("jitter", "Spread", "Each run comes by up to this much later, so that not all run at once: 30s.", "duration"),
        Input("overlap", "While its last job is not finished", "What becomes of a run that is due meanwhile.", "choice", {
            "skip": "leave it out", "queue_one": "let one wait", "allow": "run it all the same",
            "cancel_running": "cancel the other, then run it"}),
        Input("misfire", "What came due while no node was up", "It is made up for once nodes are back.", "choice", {
            "one": "the latest only", "skip": "nothing", "all": "all of it"}),
        Input("expect_within", "A success is expected within", "It is overdue without one so long after it was due: 1h."
              " Empty: nobody minds.", "duration"),
        Input("on_error", "If its job fails for good", "Its retries are used up.", "choice", {
            "deactivate": "deactivate the schedule", "keep": "go on with the schedule"}),
        Input("run_once", "Once only", "It runs one time after each start of the cluster.", "flag"),
    )  # fmt: skip
    return {each.name: each for each in inputs}


_Shown = Mapping[str, tuple[str, str]]
"""Of the job's columns, the value and zone that the form was opened with."""


@dataclass
class ScheduleForm:
    """inputs: by the column. fields: for the job's own columns. problem: of the whole.

    version: of the row that was opened; empty: a new one. words, runs: of its times, as far as they make sense; runs are
    in its own zone.
    """

    table: JobTable
    inputs: dict[str, Input]
    fields: list[forms.Field]
    row: Row | None = None
    version: str = ""
    problem: str = ""
    words: str = ""
    runs: list[datetime] = field(default_factory=list)
    labels: related.Labels = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        return not self.problem and not any(self.problems.values())

    @property
    def problems(self) -> dict[str, str]:
        """By the name of the field in the form; empty where all is well."""
        own = {name: each.problem for name, each in self.inputs.items()}
        return own | {f"c.{each.column.name}": each.problem for each in self.fields}


def opened(table: JobTable, columns: list[Column], row: Row | None) -> ScheduleForm:
    """As it is now; None: a new one."""
    inputs = _inputs()
    for name, value in _texts(row or {"time_zone": "UTC"}).items():
        inputs[name].value = value
    if row is not None:
        del inputs["name"]
    fields = _fields(columns, (row or {}).get("job_values", {}))
    form = ScheduleForm(table, inputs, fields, row, "" if row is None else row["version"])
    _say_times(form)
    return form


def sent(
    table: JobTable, columns: list[Column], row: Row | None, given: Mapping[str, str]
) -> tuple[ScheduleForm, dict[str, Any]]:
    """What somebody made of it, with what is wrong with it, and columns of the row as far as they can be read."""
    form = opened(table, columns, row)
    form.version = given.get("version", "")
    for name, each in form.inputs.items():
        each.value = given.get(name, "").replace("\x00", "").strip()
    shown = {cell.column.name: (cell.value, cell.zone) for cell in form.fields}
    for cell in form.fields:
        cell.zone = given.get(f"z.{cell.column.name}", "UTC").strip()
        cell.value = given.get(f"c.{cell.column.name}", "").replace("\r\n", "\n").replace("\x00", "")
    found = _read(form, shown)
    _say_times(form, found)
    return form, found


def _fields(columns: list[Column], values: Mapping[str, Any]) -> list[forms.Field]:
    offered = [column for column in columns if column.name != "run_at"]  # that is the schedule's
    return forms.fields(offered, {name: _text(value) for name, value in values.items()})


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- what is in the row, and what was sent ---


def _texts(row: Row) -> dict[str, str]:
    """Its columns as the inputs show them."""
    texts = {}
    for name, each in _inputs().items():
        value = row.get(name)
        if each.kind == "choice":
            texts[name] = str(value or next(iter(each.choices)))
        elif each.kind == "flag":
            texts[name] = "on" if value else ""
        elif value is None or value == NEVER:
            texts[name] = ""
        elif isinstance(value, timedelta):
            texts[name] = _duration_text(value)
        elif isinstance(value, datetime):
            texts[name] = value.astimezone(_zone(row["time_zone"])).replace(tzinfo=None).isoformat(timespec="seconds")
        else:
            texts[name] = str(value)
    return texts


def _duration_text(value: timedelta) -> str:
    """90m, 1.5s: what can be read again."""
    for unit, size in _UNITS:
        if not value % timedelta(seconds=size):
            return f"{value // timedelta(seconds=size)}{unit}"
    return f"{value.total_seconds():f}".rstrip("0") + "s"


def _read(form: ScheduleForm, shown: _Shown) -> dict[str, Any]:
    """Columns of the row. What can't be read has a problem, and is left out."""
    before, found = _texts(form.row) if form.row else {}, {}
    zone = form.inputs["time_zone"].value or "UTC"
    for name, each in form.inputs.items():
        is_as_before = form.row is not None and each.value == before[name]
        if is_as_before and (each.kind != "moment" or zone == form.row["time_zone"]):  # type: ignore[index]  # it is not None
            found[name] = form.row[name]  # type: ignore[index]
            continue
        try:
            found[name] = _value(each, zone)
        except ValidationError as error:
            each.problem = error.errors()[0]["msg"].removeprefix("Value error, ") + "."
        except (ValueError, OverflowError):
            each.problem = "A time looks like 2030-01-31 12:00."
    if "name" in form.inputs and not found.get("name"):
        form.inputs["name"].problem = "It needs a name."
    found["job_values"] = _job_values(form, shown)
    return found


def _value(each: Input, zone: str) -> Any:  # Any: that of the column
    match each.kind:
        case "flag":
            return bool(each.value)
        case "duration" if each.name == "jitter" and each.value in ("", "0"):
            return NEVER
        case "duration":
            return _DURATION.validate_python(each.value) if each.value else None
        case "moment":
            moment = datetime.fromisoformat(each.value) if each.value else None
            return moment.replace(tzinfo=_zone(zone)).astimezone(UTC) if moment and moment.tzinfo is None else moment
        case "text" if each.name == "time_zone":
            return each.value or "UTC"
    return each.value or None


def _job_values(form: ScheduleForm, shown: _Shown) -> dict[str, Any]:
    """Those that are not empty; what nobody touched stays as it is."""
    before = form.row["job_values"] if form.row else {}
    found: dict[str, Any] = {}
    for each in form.fields:
        name, text = each.column.name, each.value
        is_kept = each.column.is_secret and not text  # it is not shown, so empty means as before
        if name in before and (is_kept or (text, each.zone) == shown[name]):
            found[name] = before[name]
        elif text:
            try:
                found[name] = _json(each)
            except (ValueError, RecursionError) as error:
                each.problem = f"This is not JSON: {error}."
    return found


def _json(each: forms.Field) -> object:
    """ValueError: it is not JSON. Lines are the elements of an array, unless they are an array already."""
    is_array = each.kind == "array"
    if each.kind == "json" or (is_array and each.value.lstrip().startswith("[")):
        return json.loads(each.value)
    if is_array and not each.value.lstrip().startswith("{"):
        return each.value.split("\n")
    return each.sent


async def offer(connection: Connection, form: ScheduleForm) -> None:
    """What there is to choose from, and what the values stand for."""
    for each in form.fields:
        each.options = await related.options(connection, each.column)
    values = {each.column.name: each.value for each in form.fields}
    form.labels = await related.labels(connection, [each.column for each in form.fields], [values])


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return ZoneInfo("UTC")


# --- its times ---


def _say_times(form: ScheduleForm, found: Mapping[str, Any] | None = None) -> None:
    """Its times in words and its next runs, or what is wrong with them."""
    given: dict[str, Any] = {**(form.row or {"name": "", "time_zone": "UTC", "jitter": NEVER}), **(found or {})}
    if given.get("cron") is None and given.get("every") is None:
        if found is not None and not form.inputs["every"].problem:
            form.inputs["cron"].problem = "Give a cron, or an interval below."
        return
    names = ("cron", "every", "time_zone", "starts_at", "ends_at", "jitter")
    try:
        definition: list[Any] = [given.get(name) for name in names]
        times = Recurrence(given.get("name") or "", *definition)
        form.words = times.words()
        zone = ZoneInfo(times.time_zone)
        is_as_before = form.row is not None and all(given.get(name) == form.row[name] for name in names)
        anchor = form.row["next_due_at"] if form.row is not None and is_as_before else None
        form.runs = [due.astimezone(zone) for due in islice(times.following(datetime.now(UTC), anchor), 5)]
    except RecurrenceError as error:
        _blame_own(form, str(error))
    except OverflowError:
        form.inputs["starts_at"].problem = "That is no time of our era."


def _blame_own(form: ScheduleForm, said: str) -> None:
    """The input that a message of cluster.recurrence, or the name of a constraint, is about."""
    text = f"{said[:1].upper()}{said[1:]}{'' if said.endswith('?') else '.'}"
    names = [name for name in form.inputs if said.startswith((name, name.replace("_", " ")))]
    if "time zone" in said:
        names = ["time_zone"]
    elif "name has" in said and "name" in form.inputs:
        names = ["name"]
    elif not names and ("alias" in said or "either" in said):
        names = ["cron"]
    if names:
        form.inputs[names[0]].problem = text
    else:
        form.problem = text


# --- saving ---


async def check_values(connection: Connection, form: ScheduleForm, found: Mapping[str, Any]) -> None:
    """Says what can't be read as its column's type. Cheap: nothing is inserted."""
    for each in form.fields:
        value = found["job_values"].get(each.column.name)
        if value is not None and not await _is_readable(connection, each.column, value):
            each.problem = f"This is no {each.column.type}."


async def _is_readable(connection: Connection, column: Column, value: object) -> bool:
    query = "SELECT FROM jsonb_to_record(jsonb_build_object('value', %s)) AS r (value {}) WHERE value IS NOT NULL"
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL(query).format(sql.SQL(column.type.replace("%", "%%"))), [Jsonb(value)])
    except errors.DataError:
        return False
    return True


async def save(
    connection: Connection, user: User, form: ScheduleForm, found: dict[str, Any], *, dry_run: bool = False
) -> bool:
    """False: Postgres refused, and a field says what. dry_run: all but keeping it."""
    try:
        async with connection.transaction(force_rollback=dry_run):
            await _write(connection, form, found)
    except errors.UniqueViolation as error:
        if error.diag.table_name != "schedules":
            raise
        form.inputs["name"].problem = "There is a schedule of this name already."
    except (errors.DataError, errors.IntegrityError, errors.RaiseException, errors.UndefinedColumn) as error:
        await _blame(connection, form, error)
    if not form.is_right:
        return False
    if not dry_run:
        await _note(connection, user, form, found)
    return True


async def _write(connection: Connection, form: ScheduleForm, found: dict[str, Any]) -> None:
    row = found | {"job_values": Jsonb(found["job_values"])}
    names = sql.SQL(", ").join(map(sql.Identifier, row))
    if form.row is not None:
        assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in row)
        query = sql.SQL("UPDATE cluster.schedules SET {} WHERE name = %s").format(assignments)
        await connection.execute(query, [*row.values(), form.row["name"]])
    else:
        values = sql.SQL(", ").join(sql.Placeholder() * len(row))
        query = sql.SQL("INSERT INTO cluster.schedules ({}, job_table) VALUES ({}, %s::oid)").format(names, values)
        await connection.execute(query, [*row.values(), form.table.oid])


async def _note(connection: Connection, user: User, form: ScheduleForm, found: dict[str, Any]) -> None:
    """Which columns, not their values: some may be secret."""
    if form.row is None:
        await note(connection, user, "new", f"schedule {found['name']}", {"job_table": form.table.sql_name}, None)
        return
    row = form.row
    changed = [name for name, value in found.items() if name != "job_values" and value != row[name]]
    before, after = row["job_values"], found["job_values"]
    changed += sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    await note(connection, user, "edit", f"schedule {row['name']}", {"changed": ", ".join(changed) or "nothing"}, None)


async def _blame(connection: Connection, form: ScheduleForm, error: psycopg.Error) -> None:
    """A field of the job, if the job's table refused; else one of the schedule."""
    said = error.diag.message_primary or str(error)
    if error.diag.table_name == "schedules":
        _blame_own(form, error.diag.constraint_name or said)
    elif any(word in said for word in ("time zone", "alias", "five fields")):
        _blame_own(form, " ".join(filter(None, (said, error.diag.message_hint))))
    else:
        await forms._blame(connection, form.table, form.fields, error)
        if not any(each.problem for each in form.fields):
            form.problem = said


def say_what_differs(form: ScheduleForm) -> None:
    """Somebody saved it after this form was opened: each input says what it is now; the form is one of the new version."""
    assert form.row is not None
    for name, text in _texts(form.row).items():
        if name in form.inputs and form.inputs[name].value != text:
            each = form.inputs[name]
            each.now = each.choices.get(text, text) or "empty"
    form.version = form.row["version"]
