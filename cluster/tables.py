"""Job classes against their tables: the SQL that adds what is missing, and the check that what exists fits.

`migrate` runs the SQL; nodes only check. Reads catalogs, writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql

from cluster.columns import Column
from cluster.errors import SchemaMisfitError
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
    return _columns_of(connection, [table])[0]


def _columns_of(connection: Connection[Any], tables: list[str]) -> list[dict[str, ExistingColumn] | None]:
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


def changes(connection: Connection[Any], job_class: type[Job]) -> Iterator[sql.Composed]:
    """The statements that make the class's table fit: it is created, or given the columns and defaults that it lacks."""
    table = definition(job_class).table
    existing = existing_columns(connection, table) or {}
    missing = connection.execute(
        "SELECT EXISTS (SELECT FROM cluster.job_table_changes(%s))", [identifier(table).as_string(connection)]
    ).fetchone()
    if missing == (True,):
        yield sql.SQL("SELECT cluster.create_job_table({})").format(
            sql.Literal(identifier(table).as_string(connection))
        )
    for column in definition(job_class).columns:
        if column.name not in existing:
            yield sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(identifier(table), column.definition())
    yield from _key_change(connection, job_class)
    yield from _default_changes(connection, job_class, existing)
    yield from _job_type_change(connection, job_class)


def _key_change(connection: Connection[Any], job_class: type[Job]) -> Iterator[sql.Composed]:
    """The indexes of a limit per key, once the key's column is there; or of a limit that is the table's again."""
    table = identifier(definition(job_class).table).as_string(connection)
    key = job_class.concurrency_key or ""
    current = connection.execute(
        "SELECT coalesce(concurrency_key, '') FROM cluster.job_types WHERE job_table = to_regclass(%s)", [table]
    ).fetchone()
    incomplete = connection.execute("SELECT EXISTS (SELECT FROM cluster.job_table_changes(%s, %s))", [table, key])
    if current != (key,) or incomplete.fetchone() == (True,):
        yield sql.SQL("SELECT cluster.create_job_table({}, {})").format(sql.Literal(table), sql.Literal(key))


def _default_changes(
    connection: Connection[Any], job_class: type[Job], existing: dict[str, ExistingColumn]
) -> Iterator[sql.Composed]:
    """Defaults that differ from the class, so that a plain INSERT and perform_later always agree."""
    wanted: dict[str, sql.Composable] = {
        "queue": sql.Literal(job_class.queue),
        "priority": sql.Literal(job_class.priority),
    }
    wanted |= {column.name: column.default for column in definition(job_class).columns if column.default is not None}
    standard = {"queue": "'default'", "priority": "50"}
    for name, default in wanted.items():
        column = existing.get(name)
        current = column.default if column is not None else standard.get(name)
        if current is None and column is None:
            continue  # the column is new and comes with its default
        if current is None or not _same_value(connection, sql.SQL(current), default):
            yield sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
                identifier(definition(job_class).table), sql.Identifier(name), default
            )


def _same_value(connection: Connection[Any], left: sql.Composable, right: sql.Composable) -> bool:
    same = connection.execute(sql.SQL("SELECT ({})::text = ({})::text").format(left, right)).fetchone()
    return same == (True,)


def _job_type_change(connection: Connection[Any], job_class: type[Job]) -> Iterator[sql.Composed]:
    """The class's row in cluster.job_types. Operators' columns are left alone."""
    table = identifier(definition(job_class).table).as_string(connection)
    values: dict[str, Any] = {
        "name": definition(job_class).name,
        "max_concurrency": job_class.max_concurrency,
        "max_attempts": job_class.max_attempts,
        "max_crashes": job_class.max_crashes,
        "retention": job_class.retention,
        "retention_failed": job_class.retention_failed,
    }
    columns = sql.SQL(", ").join(map(sql.Identifier, values))
    current = connection.execute(
        sql.SQL("SELECT {} FROM cluster.job_types WHERE job_table = to_regclass({})").format(
            columns, sql.Literal(table)
        )
    ).fetchone()
    if current == tuple(values.values()):
        return
    other = connection.execute(
        "SELECT job_table::text FROM cluster.job_types WHERE name = %s AND job_table IS DISTINCT FROM to_regclass(%s)",
        [job_class.__name__, table],
    ).fetchone()
    if other is not None:  # of another service, whose pauses and limits would be confused with this one's
        free_it = sql.SQL("UPDATE cluster.job_types SET name = job_table::text WHERE name = {}").format(
            job_class.__name__
        )
        raise SchemaMisfitError(
            f"table {definition(job_class).table}: {job_class.__name__} is the class of table {other[0]} already, and a name stands"
            " for one table in a database: rename one of the classes; or, if it has moved here, let the old table have its own name"
            f" first: {free_it.as_string(connection)}"
        )
    yield sql.SQL(
        "INSERT INTO cluster.job_types (job_table, {columns}) VALUES ({table}::regclass, {values})"
        " ON CONFLICT (job_table) DO UPDATE SET ({columns}) = ROW ({excluded})"
    ).format(
        columns=columns,
        table=sql.Literal(table),
        values=sql.SQL(", ").join(map(sql.Literal, values.values())),
        excluded=sql.SQL(", ").join(sql.SQL("excluded.") + sql.Identifier(name) for name in values),
    )


def misfits(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> list[str]:
    """What keeps these classes from running on this database's tables, a sentence each. Empty: all fit."""
    found: list[str] = []
    classes = list(job_classes)
    tables = [definition(job_class).table for job_class in classes]
    for job_class, existing in zip(classes, _columns_of(connection, tables), strict=True):
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
        found += _column_misfits(job_class, existing)
    return found


def _column_misfits(job_class: type[Job], existing: dict[str, ExistingColumn]) -> Iterator[str]:
    table = definition(job_class).table
    columns = {column.name: column for column in definition(job_class).columns}
    for column in columns.values():
        problem = _misfit(column, existing.get(column.name))
        if problem:
            yield f"column {column.name} of table {table} {problem} ({job_class.__name__}.{column.name})"
    for name in existing.keys() - columns.keys() - {*STANDARD_COLUMNS, "parked"}:
        if not existing[name].nullable and existing[name].default is None:
            yield (
                f"column {name} of table {table} is NOT NULL without a default, but {job_class.__name__} has no such field:"
                " perform_later could not insert a row"
            )


def _misfit(column: Column, existing: ExistingColumn | None) -> str | None:
    if existing is None:
        return f"is missing: the class needs {column.type.name}"
    if existing.type not in column.type.fits:
        return f"is {existing.type}, but the class needs {column.type.name}"
    if column.nullable and not existing.nullable:
        return "is NOT NULL, but the class allows None"
    return None
