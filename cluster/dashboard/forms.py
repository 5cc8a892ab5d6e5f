"""The form for a new job, made from the table's columns; what Postgres refuses is told at the field that it is about.

Writes one row of a job table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from cluster.dashboard import actions
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column, JobTable, quoted

OFFERED = ("queue", "priority", "run_at")
"""Standard columns that are the user's own."""
_KINDS = {
    "bigint": "number", "integer": "number", "smallint": "number", "jsonb": "json", "json": "json", "boolean": "choice",
}  # fmt: skip


@dataclass
class Field:
    """One input. kind: number, json, choice or text. problem: what Postgres said about the value; empty: nothing."""

    column: Column
    kind: str
    choices: list[str]
    value: str = ""
    problem: str = ""

    @property
    def hint(self) -> str:
        """What an empty field means."""
        if self.column.default is not None:
            return f"default {self.column.default}"
        return "required" if self.column.is_required else "optional"


def fields(columns: list[Column], values: Mapping[str, Any]) -> list[Field]:
    """The user's columns, then the standard ones; values as somebody sent them, or of another job."""
    own = [column for column in columns if not column.is_standard]
    standard = [column for name in OFFERED for column in columns if column.name == name]
    return [_field(column, values.get(column.name)) for column in (*own, *standard) if column.default != "identity"]


def _field(column: Column, value: object) -> Field:
    kind = "choice" if column.choices else _KINDS.get(column.type, "text")
    choices = column.choices or (["true", "false"] if column.type == "boolean" else [])
    return Field(column, kind, choices, "" if value is None else str(value))


async def insert(connection: Connection, user: User, table: JobTable, form: list[Field]) -> int | None:
    """The new job's id. None: Postgres refused, and a field's `problem` says what. An empty field is left to its default."""
    given = [field for field in form if field.value != ""]
    query = sql.SQL("INSERT INTO {} {} RETURNING id").format(table.identifier, _values(given))
    try:
        async with connection.transaction():
            row = await (await connection.execute(query, [field.value for field in given])).fetchone()
    except (errors.DataError, errors.IntegrityError, errors.RaiseException) as error:
        await _blame(connection, table, form, error)
        return None
    assert row is not None
    await actions.note(connection, user, "new", f"{table.sql_name} {row['id']}", None, 1)
    number: int = row["id"]
    return number


def _values(given: list[Field]) -> sql.Composable:
    if not given:
        return sql.SQL("DEFAULT VALUES")
    names = sql.SQL(", ").join(quoted(field.column.name) for field in given)
    return sql.SQL("({}) VALUES ({})").format(names, sql.SQL(", ").join(sql.Placeholder() * len(given)))


async def _blame(connection: Connection, table: JobTable, form: list[Field], error: psycopg.Error) -> None:
    """The field that the error names, or whose value can't be read as its type; else the first one."""
    said = error.diag.message_primary or str(error)
    if error.diag.message_detail and error.diag.sqlstate == "23503":
        said = f"{said}: {error.diag.message_detail}"
    names = [error.diag.column_name] if error.diag.column_name else await _columns_of(connection, table, error)
    if not names and isinstance(error, errors.DataError):
        names = [field.column.name for field in form if field.value and not await _is_readable(connection, field)]
    blamed = [field for field in form if field.column.name in names] or form[:1]
    for field in blamed[:1]:
        field.problem = said


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


async def _is_readable(connection: Connection, field: Field) -> bool:
    query = f"SELECT CAST(%s AS {field.column.type.replace('%', '%%')})"
    try:
        async with connection.transaction():
            await connection.execute(query.encode(), [field.value])
    except errors.DataError:
        return False
    return True
