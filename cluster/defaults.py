"""Defaults of columns that are not those of the class, so that a plain INSERT and perform_later would not agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from psycopg import Connection, sql

from cluster.job import Job, definition
from cluster.tables import ExistingColumn, identifier

_STANDARD = {"queue": "'default'", "priority": "50"}
"""Of a table that is to be made."""


class _Default(NamedTuple):
    """current: as Postgres prints it. None: there is none."""

    column: str
    current: str | None
    wanted: sql.Composable


def default_changes(
    connection: Connection[Any], tables: Sequence[tuple[type[Job], dict[str, ExistingColumn]]]
) -> list[list[sql.Composed]]:
    """For each class with its columns the statements that give these the class's defaults. One query for all."""
    defaults = [list(_defaults(job_class, existing)) for job_class, existing in tables]
    compared = [default for of_class in defaults for default in of_class if _is_constant(default.current)]
    same: list[bool] = []
    if compared:
        pairs = (sql.SQL("({})::text = ({})::text").format(sql.SQL(d.current or ""), d.wanted) for d in compared)
        same = list(connection.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(pairs))).fetchone() or ())
    equal = {id(default) for default, is_same in zip(compared, same, strict=True) if is_same}
    return [
        [
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
                identifier(definition(job_class).table), sql.Identifier(default.column), default.wanted
            )
            for default in of_class
            if id(default) not in equal
        ]
        for (job_class, _), of_class in zip(tables, defaults, strict=True)
    ]


def _defaults(job_class: type[Job], existing: dict[str, ExistingColumn]) -> Iterator[_Default]:
    """That the class has, of columns that are there or are standard: other new ones come with theirs."""
    wanted: dict[str, sql.Composable] = {
        "queue": sql.Literal(job_class.queue),
        "priority": sql.Literal(job_class.priority),
    }
    wanted |= {column.name: column.default for column in definition(job_class).columns if column.default is not None}
    for name, default in wanted.items():
        if name in existing:
            yield _Default(name, existing[name].default, default)
        elif name in _STANDARD:
            yield _Default(name, _STANDARD[name], default)


def _is_constant(printed: str | None) -> bool:
    """What calls a function is not evaluated: it may number rows."""
    return printed is not None and "(" not in _NO_CALL.sub("", printed)


_NO_CALL = re.compile(r"'(?:[^']|'')*'|\(\d+(?:,\s*-?\d+)?\)|^\((?=-?\d)")
"""What has parentheses and calls nothing: quoted text, the digits of a type, and what Postgres puts around a signed number."""
