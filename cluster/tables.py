"""Job classes against their tables: what keeps a class from running on a table. Reads catalogs, writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql

from cluster.columns import Column
from cluster.job import Job, definition
from cluster.job_checks import STANDARD_COLUMNS


@dataclass(frozen=True)
class ExistingColumn:
    """A column as the database has it. type: pg_type's name, 'enum' for any enum. default: SQL, None: none."""

    name: str
    type: str
    nullable: bool
    default: str | None


def identifier(table: str) -> sql.Identifier:
    """A table's possibly qualified name as SQL."""
    return sql.Identifier(*table.split("."))


def existing_columns(connection: Connection[Any], table: str) -> dict[str, ExistingColumn] | None:
    """The table's columns by name. None: there is no such table."""
    return columns_of_tables(connection, [table])[0]


def columns_of_tables(connection: Connection[Any], tables: list[str]) -> list[dict[str, ExistingColumn] | None]:
    """Of each table, in one query: a network is slow, and there may be hundreds of classes."""
    names = [identifier(table).as_string(connection) for table in tables]
    found: list[dict[str, ExistingColumn] | None] = [None] * len(tables)
    for place, *column in connection.execute(_COLUMNS, [names]):
        columns = found[place - 1] = found[place - 1] or {}
        if column[0] is not None:
            columns[column[0]] = ExistingColumn(*column)
    return found


_COLUMNS = """
SELECT given.place, a.attname, CASE WHEN t.typtype = 'e' THEN 'enum' ELSE coalesce(base.typname, t.typname) END,
       NOT a.attnotnull, CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END
FROM unnest(%s::text[]) WITH ORDINALITY AS given (name, place)
JOIN pg_class c ON c.oid = to_regclass(given.name)
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type base ON base.oid = t.typbasetype AND t.typtype = 'd'
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
"""


def misfits(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> list[str]:
    """What keeps these classes from running on this database's tables, a sentence each. Empty: all fit."""
    found: list[str] = []
    classes = list(job_classes)
    tables = [definition(job_class).table for job_class in classes]
    for job_class, existing in zip(classes, columns_of_tables(connection, tables), strict=True):
        if existing is None:
            found.append(f"table {definition(job_class).table} of {job_class.__name__} is missing")
            continue
        found += [
            f"column {name} is missing in table {definition(job_class).table}"
            for name in STANDARD_COLUMNS
            if name not in existing
        ]
        if job_class.concurrency_key is not None and "parked" not in existing:
            found.append(
                f"table {definition(job_class).table} is not prepared for a limit per {job_class.concurrency_key}"
            )
        found += [
            f"column {column.name} of table {definition(job_class).table} is missing: the class needs {column.type.name}"
            f" ({job_class.__name__}.{column.name})"
            for column in definition(job_class).columns
            if column.name not in existing
        ]
        found += column_misfits(job_class, existing)
    return found


def column_misfits(job_class: type[Job], existing: dict[str, ExistingColumn]) -> list[str]:
    """Of the columns that are there: what adding others does not mend."""
    table = definition(job_class).table
    columns = {column.name: column for column in definition(job_class).columns}
    found = []
    for name in existing.keys() & columns.keys():
        problem = _misfit(columns[name], existing[name])
        if problem:
            found.append(f"column {name} of table {table} {problem} ({job_class.__name__}.{name})")
    found += [
        f"column {name} of table {table} is NOT NULL without a default, but {job_class.__name__} has no such field:"
        " perform_later could not insert a row"
        for name in existing.keys() - columns.keys() - {*STANDARD_COLUMNS, "parked"}
        if not existing[name].nullable and existing[name].default is None
    ]
    return sorted(found)


def _misfit(column: Column, existing: ExistingColumn) -> str | None:
    if existing.type not in column.type.fits:
        return f"is {existing.type}, but the class needs {column.type.name}"
    if column.nullable and not existing.nullable:
        return "is NOT NULL, but the class allows None"
    return None
