"""The form for a new job, made from the table's columns; what Postgres refuses is told at the field that it is about.

Where the job's class is at hand, it checks the values, too, as it will when the job is performed. Writes one row of a job table.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pydantic
from psycopg import Rollback, errors, sql

from cluster.dashboard import actions
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column, JobTable, quoted
from cluster.job import Job, definition, validate_fields
from cluster.secret import mask

Create = Callable[[Connection, User, Mapping[str, str]], Awaitable[int]]
OFFERED = ("queue", "priority", "run_at")
"""Standard columns that are the user's own."""
_KINDS = {
    "jsonb": "json", "json": "json", "boolean": "choice", "date": "date", "timestamp with time zone": "moment",
    "timestamp without time zone": "local", "bytea": "text",
}  # fmt: skip
_LOCAL = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(:\d\d(\.\d{1,3})?)?)(\+00)?", re.ASCII)
"""What an input of a browser can hold, of a time as Postgres writes it in UTC."""
_WRITTEN = re.compile(r"^'([^']*)'::[\w ]+$")
"""A constant, as Postgres writes defaults."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@dataclass
class Field:
    """One input. kind: number, json, choice, array, moment (with a zone), local, date, secret, or text, which takes all else.

    options: values and what they stand for, to choose from. help: of the class. problem: what is wrong with the value; empty:
    nothing. is_made: the class makes one for an empty field. kept: the job whose value an empty field stands for; None: it stands
    for none.
    """

    column: Column
    kind: str
    choices: list[str]
    value: str = ""
    zone: str = "UTC"
    options: Mapping[str, str] = field(default_factory=dict)
    help: str = ""
    problem: str = ""
    is_made: bool = False
    kept: int | None = None

    @property
    def hint(self) -> str:
        """What an empty field means."""
        if self.kept is not None:
            return f"empty: that of job {self.kept}"
        if self.column.default is not None:
            constant = _WRITTEN.match(self.column.default)
            return f"default {constant[1] if constant else self.column.default}"
        if self.is_made:
            return "empty: the class makes one"
        return "required" if self.column.is_required else "optional"

    @property
    def checks(self) -> list[str]:
        """That the value has to pass; those of standard columns are the cluster's own matter."""
        return (
            []
            if self.column.is_standard
            else [check.removeprefix("(").removesuffix(")") for check in self.column.checks]
        )

    @property
    def is_required(self) -> bool:
        return self.hint == "required"

    @property
    def sent(self) -> str:
        """For Postgres. Lines are the elements of an array, unless they are an array already."""
        if self.kind == "moment" and _LOCAL.fullmatch(self.value):
            return f"{self.value.replace('T', ' ')} {self.zone}".strip()
        return self.value


def fields(
    columns: list[Column],
    values: Mapping[str, Any],
    job_class: type[Job] | None = None,
    source: int | None = None,
    zones: Mapping[str, str] | None = None,
    kept: Collection[str] = (),
) -> list[Field]:
    """The user's columns, then the standard ones; values as somebody sent them, or of another job; zones: of times, None: UTC.

    source: the job of which an empty field takes over what is secret, and the columns `kept`; None: there is none.
    """
    own = [column for column in columns if not column.is_standard]
    standard = [column for name in OFFERED for column in columns if column.name == name]
    made = [
        _field(column, values.get(column.name), (zones or {}).get(column.name, "UTC"))
        for column in (*own, *standard)
        if column.default != "identity"
    ]
    known = {} if job_class is None else {column.name: column for column in definition(job_class).columns}
    for each in made:
        each.kept = source if each.column.is_secret or each.column.name in kept else None
        if each.column.name in known and job_class is not None:
            each.is_made = known[each.column.name].has_factory
            each.help = job_class.__pydantic_fields__[each.column.name].description or ""  # type: ignore[attr-defined]
    return made


def _field(column: Column, given: object, zone: str) -> Field:
    value = "" if given is None else str(given)
    kind = "choice" if column.choices else _KINDS.get(column.bare_type, "text")
    if column.is_secret:
        kind = "secret"
    elif kind == "text":
        kind = {"A": "array", "N": "number"}.get(column.category, "text")
    local = _LOCAL.fullmatch(value)
    if kind in ("moment", "local") and local:
        value = f"{local[1]}T{local[2]}"
    elif (kind in ("moment", "local") and value) or (kind == "date" and value and not _DATE.fullmatch(value)):
        kind = "text"
    choices = column.choices or (["true", "false"] if column.category == "B" else [])
    return Field(column, kind, choices, value, zone)


async def insert(
    connection: Connection, user: User, table: JobTable, form: list[Field], job_class: type[Job] | None = None
) -> int | None:
    """The new job's id. None: it is refused, and a field's `problem` says why. An empty field is left to its default."""
    given = list(_given(table, form, job_class))
    returned = ["id", *(definition(job_class).column_names if job_class is not None else ())]
    query = sql.SQL("INSERT INTO {} {} RETURNING {}").format(
        table.identifier, _values(given), sql.SQL(", ").join(map(quoted, returned))
    )
    row = None
    try:
        async with connection.transaction():
            row = await (await connection.execute(query, [value for _, _, value in given])).fetchone()
            if row is not None and job_class is not None and _is_refused(job_class, row, form):
                row = None
                raise Rollback
    except (errors.DataError, errors.IntegrityError, errors.RaiseException) as error:
        await _blame(connection, table, form, error)
        return None
    if row is None:
        if not any(each.problem for each in form):
            form[0].problem = "a trigger of the table let no row come"
        return None
    await actions.note(connection, user, "new", f"{table.sql_name} {row['id']}", None, 1)
    number: int = row["id"]
    return number


async def create(
    connection: Connection, user: User, table: JobTable, by: Create, values: Mapping[str, str]
) -> tuple[int | None, str]:
    """The new job's id, by the application's own function; or None, and what that or Postgres says against it."""
    try:
        async with connection.transaction():
            number = await by(connection, user, values)
    except (errors.DataError, errors.IntegrityError, errors.RaiseException) as error:
        return None, error.diag.message_primary or str(error)
    except ValueError as error:
        return None, str(error)
    await actions.note(connection, user, "new", f"{table.sql_name} {number}", None, 1)
    return number, ""


def _given(
    table: JobTable, form: list[Field], job_class: type[Job] | None
) -> Iterator[tuple[str, sql.Composable, object]]:
    """Columns, how their values are written, and the values."""
    made = {} if job_class is None else {column.name: column for column in definition(job_class).columns}
    for each in form:
        name = each.column.name
        if each.kind == "array" and each.value and not each.value.lstrip().startswith("{"):
            yield name, sql.SQL("%s::text[]::{}").format(_type(each.column)), each.value.split("\n")
        elif each.value != "":
            yield name, sql.SQL("%s"), each.sent
        elif each.kept is not None:
            copy = sql.SQL("(SELECT {} FROM {} WHERE id = %s)").format(quoted(name), table.identifier)
            yield name, copy, each.kept
        elif each.is_made and job_class is not None:
            python = job_class.__pydantic_fields__[name].get_default(call_default_factory=True)  # type: ignore[attr-defined]
            yield name, sql.SQL("%s"), made[name].value(python)


def _type(column: Column) -> sql.SQL:
    return sql.SQL(column.type.replace("%", "%%"))


def _values(given: Sequence[tuple[str, sql.Composable, object]]) -> sql.Composable:
    if not given:
        return sql.SQL("DEFAULT VALUES")
    names = sql.SQL(", ").join(quoted(name) for name, _, _ in given)
    return sql.SQL("({}) VALUES ({})").format(names, sql.SQL(", ").join(written for _, written, _ in given))


def _is_refused(job_class: type[Job], row: Mapping[str, Any], form: list[Field]) -> bool:
    """By the class, as a worker would find it: the field has the reason."""
    job = job_class.__new__(job_class)
    try:
        validate_fields(job, {name: row[name] for name in definition(job_class).column_names})
    except pydantic.ValidationError as error:
        for detail in error.errors(include_url=False):
            blamed = [each for each in form if detail["loc"] and each.column.name == detail["loc"][0]] or form
            blamed[0].problem = blamed[0].problem or detail["msg"]
        return True
    except Exception as error:  # noqa: BLE001 - a validator of the user's
        form[0].problem = f"its class refuses it: {type(error).__name__}"
        return True
    return False


async def _blame(connection: Connection, table: JobTable, form: list[Field], error: psycopg.Error) -> None:
    """The field that the error names, or whose value can't be read as its type; else the first one."""
    said = error.diag.message_primary or str(error)
    if error.diag.message_detail and error.diag.sqlstate in _TOLD_IN_DETAIL:
        said = f"{said}: {error.diag.message_detail}"
    names = [error.diag.column_name] if error.diag.column_name else await _columns_of(connection, table, error)
    if not names and isinstance(error, errors.DataError):
        names = [each.column.name for each in form if each.value and not await _is_readable(connection, table, each)]
    blamed = [each for each in form if each.column.name in names] or form[:1]
    for each in blamed[:1]:
        each.problem = mask(said, [secret.value for secret in form if secret.column.is_secret])


_TOLD_IN_DETAIL = ("23503", "22P02")
"""SQLSTATEs whose detail says which key is not there, or what of a JSON is wrong."""


async def _columns_of(connection: Connection, table: JobTable, error: psycopg.Error) -> list[str]:
    """Of the constraint that was violated."""
    query = """
    SELECT a.attname::text AS name
    FROM pg_constraint AS c JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
    WHERE c.conrelid = %s::oid AND c.conname = %s ORDER BY a.attnum
    """
    if not error.diag.constraint_name:
        return []
    rows = await (await connection.execute(query, [table.oid, error.diag.constraint_name])).fetchall()
    return [row["name"] for row in rows]


async def _is_readable(connection: Connection, table: JobTable, given: Field) -> bool:
    ((_, written, value),) = _given(table, [given], None)
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SELECT CAST({} AS {})").format(written, _type(given.column)), [value])
    except errors.DataError:
        return False
    return True
