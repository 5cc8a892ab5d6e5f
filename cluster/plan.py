"""What `migrate` would run for a job class: found in the catalogs alone, so a transaction that can only read is enough.

A table that is large is changed so that jobs go on meanwhile: its indexes are built CONCURRENTLY, and its checks are added NOT
VALID and validated afterwards. That can't be in one transaction; everything else is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection, sql

from cluster import unique
from cluster.columns import Column
from cluster.defaults import default_changes
from cluster.errors import SchemaMisfitError
from cluster.job import Job, definition
from cluster.schedule_rows import schedule_changes
from cluster.secret import MARK
from cluster.tables import ExistingColumn, column_misfits, existing_columns, identifier

Statement = sql.SQL | sql.Composed
LARGE = 8 * 1024 * 1024
"""Bytes of a table from which on a scan of it is felt: a smaller one is locked for less time than the waiting for it takes."""


@dataclass
class Plan:
    """together: in one transaction. then: each by itself, in autocommit; each may be run again after it broke off."""

    together: list[Statement] = field(default_factory=list)
    then: list[Statement] = field(default_factory=list)

    @property
    def statements(self) -> list[Statement]:
        """All, in order."""
        return [*self.together, *self.then]


@dataclass(frozen=True)
class _Target:
    """The table of a class as it is. existing: None, there is no such table. key: the column that has its limit; "": none."""

    job_class: type[Job]
    existing: dict[str, ExistingColumn] | None
    has_functions: bool
    """Whether schema cluster is there: without it what is missing in an existing table can't be told in detail."""
    has_rows: bool = False
    large: bool = False
    key: str = ""

    @property
    def name(self) -> str:
        return definition(self.job_class).table

    @property
    def quoted(self) -> str:
        return identifier(self.name).as_string(None)


def plan(connection: Connection[Any], job_class: type[Job], planned_tables: Collection[str] = ()) -> Plan:
    """planned_tables: of other classes, that will be there by then.

    SchemaMisfitError: it could not run on the rows that are there, or would not end with a table that fits.
    """
    target = _look_at(connection, job_class)
    problems = column_misfits(job_class, target.existing or {})
    if problems:
        raise SchemaMisfitError(f"{'; '.join(problems)}: migrate only adds; change the column or the class")
    made = Plan()
    key = job_class.concurrency_key or ""
    # The indexes of another key have the same names: old ones go and new ones come while nobody looks.
    gently = target.large and target.key == key
    if target.existing is None or not target.has_functions:
        made.together.append(_call("create_job_table", sql.Literal(target.quoted)))
    for column in definition(job_class).columns:
        if column.name not in (target.existing or {}):
            _check_addition(connection, target, column, planned_tables)
            _add_column(made, target, column, gently=gently)
    if target.existing is None or not target.has_functions:
        if key:
            made.together.append(_call("create_job_table", sql.Literal(target.quoted), sql.Literal(key)))
    else:
        for change in _table_changes(connection, target, key):
            _add_change(made, target, change, gently=gently)
    for statement in unique.changes(connection, job_class):
        _add_change(made, target, statement.as_string(connection), gently=gently)
    made.together += default_changes(connection, [(job_class, target.existing or {})])[0]
    made.together += _secret_changes(connection, target)
    made.together += _job_type_change(connection, target)
    made.together += schedule_changes(connection, job_class, target.quoted, has_rows=target.has_functions)
    return made


def _call(function: str, *arguments: sql.Composable) -> sql.Composed:
    return sql.SQL("SELECT {}({})").format(sql.Identifier("cluster", function), sql.SQL(", ").join(arguments))


def _look_at(connection: Connection[Any], job_class: type[Job]) -> _Target:
    name = definition(job_class).table
    existing = existing_columns(connection, name)
    has_functions = connection.execute("SELECT to_regclass('cluster.job_types') IS NOT NULL").fetchone() == (True,)
    if existing is None:
        return _Target(job_class, None, has_functions)
    quoted = identifier(name).as_string(connection)
    row = connection.execute("SELECT pg_relation_size(oid) FROM pg_class WHERE oid = %s::regclass", [quoted]).fetchone()
    assert row is not None
    (size,) = row  # 0, too, of what is no table, and has no rows of its own
    any_row = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(identifier(name))
    has_rows = size > 0 and connection.execute(any_row).fetchone() == (True,)
    key = ""
    if has_functions:
        found = connection.execute(
            "SELECT coalesce(concurrency_key, '') FROM cluster.job_types WHERE job_table = %s::regclass", [quoted]
        ).fetchone()
        key = "" if found is None else found[0]
    return _Target(job_class, existing, has_functions, has_rows, size >= LARGE, key)


def _check_addition(
    connection: Connection[Any], target: _Target, column: Column, planned_tables: Collection[str]
) -> None:
    """What Postgres would refuse in the midst of it, said before."""
    place = f"table {target.name} of {target.job_class.__name__}"
    if target.has_rows and not column.nullable and column.default is None:
        raise SchemaMisfitError(
            f'{place}: column "{column.name}" would be NULL in the rows that are there: give the new field a default, or make it'
            " Optional"
        )
    table = "" if column.references is None else column.references.table
    if table not in {"", target.name, *planned_tables} and existing_columns(connection, table) is None:
        raise SchemaMisfitError(
            f"{place}: run your own migrations first: table {table}, which column {column.name} refers to, is not there"
        )


def _add_column(made: Plan, target: _Target, column: Column, *, gently: bool) -> None:
    table = identifier(target.name)
    if not gently:
        made.together.append(sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(table, column.definition()))
        return
    made.together.append(sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(table, column.bare_definition()))
    for number, constraint in enumerate(column.constraints(), 1):
        name = sql.Identifier(f"cluster_{number}_{column.name}")  # the number first: Postgres cuts long names
        made.together.append(sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID").format(table, name, constraint))
        made.then.append(sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(table, name))


def _table_changes(connection: Connection[Any], target: _Target, key: str) -> Iterator[str]:
    for (change,) in connection.execute("SELECT cluster.job_table_changes(%s, %s)", [target.quoted, key]).fetchall():
        yield change


_ADD_CHECK = re.compile(r"ALTER TABLE .+? ADD CONSTRAINT (?P<name>\w+) CHECK ")
_CREATE_INDEX = re.compile("CREATE (UNIQUE )?INDEX ")


def _add_change(made: Plan, target: _Target, change: str, *, gently: bool) -> None:
    """change: a statement of cluster.job_table_changes."""
    text = sql.SQL(change)
    check = _ADD_CHECK.match(change)
    if " VALIDATE CONSTRAINT " in change:
        made.then.append(text)
    elif gently and check is not None:
        made.together.append(sql.SQL("{} NOT VALID").format(text))
        made.then.append(
            sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                identifier(target.name), sql.Identifier(check["name"])
            )
        )
    elif gently and (create := _CREATE_INDEX.match(change)):
        made.then.append(sql.SQL(f"{create[0]}CONCURRENTLY {change[create.end() :]}"))
    else:
        made.together.append(text)


def _secret_changes(connection: Connection[Any], target: _Target) -> Iterator[sql.Composed]:
    """The comments that columns of secrets lack. One that is there stays, whoever wrote it, and is added to."""
    for name in definition(target.job_class).secrets:
        row = connection.execute(_COMMENT, [target.quoted, name]).fetchone()
        comment = (row[0] if row else None) or ""
        if MARK not in comment:
            yield sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                identifier(target.name), sql.Identifier(name), sql.Literal(f"{comment} {MARK}".strip())
            )


_COMMENT = """
SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s
"""


def _job_type_change(connection: Connection[Any], target: _Target) -> Iterator[sql.Composed]:
    """The class's row in cluster.job_types. Operators' columns are left alone."""
    job_class = target.job_class
    values: dict[str, Any] = {
        "name": definition(job_class).name,
        "max_concurrency": job_class.max_concurrency,
        "concurrency_key": job_class.concurrency_key,
        "max_attempts": job_class.max_attempts,
        "max_crashes": job_class.max_crashes,
        "retention": job_class.retention,
        "retention_failed": job_class.retention_failed,
    }
    columns = sql.SQL(", ").join(map(sql.Identifier, values))
    if target.has_functions:
        current = connection.execute(
            sql.SQL("SELECT {} FROM cluster.job_types WHERE job_table = to_regclass({})").format(columns, target.quoted)
        ).fetchone()
        if current == tuple(values.values()):
            return
        yield from _free_name(connection, target)
    yield sql.SQL(
        "INSERT INTO cluster.job_types (job_table, {columns}) VALUES ({table}::regclass, {values})"
        " ON CONFLICT (job_table) DO UPDATE SET ({columns}) = ROW ({excluded})"
    ).format(
        columns=columns,
        table=sql.Literal(target.quoted),
        values=sql.SQL(", ").join(map(sql.Literal, values.values())),
        excluded=sql.SQL(", ").join(sql.SQL("excluded.") + sql.Identifier(name) for name in values),
    )


def _free_name(connection: Connection[Any], target: _Target) -> Iterator[sql.Composed]:
    """A name stands for one table: that of a table that is gone is free."""
    name = definition(target.job_class).name
    other = connection.execute(
        "SELECT job_table::text, EXISTS (SELECT FROM pg_class c WHERE c.oid = job_table) FROM cluster.job_types"
        " WHERE name = %s AND job_table IS DISTINCT FROM to_regclass(%s)",
        [name, target.quoted],
    ).fetchone()
    if other is None:
        return
    if other[1]:  # of another service, whose pauses and limits would be confused with this one's
        free_it = sql.SQL("UPDATE cluster.job_types SET name = job_table::text WHERE name = {}").format(name)
        raise SchemaMisfitError(
            f"table {target.name}: {name} is the class of table {other[0]} already, and a name stands for one table in a database:"
            " rename one of the classes; or, if it has moved here, let the old table have its own name first:"
            f" {free_it.as_string(connection)}"
        )
    yield sql.SQL("DELETE FROM cluster.job_types WHERE name = {}").format(name)
