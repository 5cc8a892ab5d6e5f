"""Where a table is not what its class would make today: checks, defaults and nullability. Jobs run all the same; an insert or a
job may fail that need not. `migrate` only adds, so it names these, as the start of a node does, each with the SQL that ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, sql

from cluster.columns import Column
from cluster.defaults import default_changes
from cluster.job import Job, definition
from cluster.tables import ExistingColumn, columns_of_tables, identifier


@dataclass(frozen=True)
class Difference:
    """remedy: SQL that makes the table as the class has it."""

    job_class: type[Job]
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"table {definition(self.job_class).table}: {self.what}: {self.remedy}"


@dataclass(frozen=True)
class _Check:
    """A CHECK of one column, as Postgres prints its condition."""

    name: str
    column: str
    condition: str


def differences(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> list[Difference]:
    """Of tables that fit otherwise. Reads catalogs, and lets the planner print conditions; changes nothing."""
    classes = list(job_classes)
    names = [definition(job_class).table for job_class in classes]
    found: list[Difference] = []
    existing_of = [columns or {} for columns in columns_of_tables(connection, names)]
    checks_of = _checks_of_tables(connection, names)
    defaults_of = default_changes(connection, [(cls, there) for cls, there in zip(classes, existing_of, strict=True)])
    for job_class, existing, checks, defaults in zip(classes, existing_of, checks_of, defaults_of, strict=True):
        for column in definition(job_class).columns:
            if column.name in existing:
                found += _column_differences(job_class, column, existing[column.name])
        what = f"a default is not that of {job_class.__name__}"
        found += (Difference(job_class, what, change.as_string(connection)) for change in defaults)
        found += _check_differences(connection, job_class, checks)
    return found


def _column_differences(job_class: type[Job], column: Column, existing: ExistingColumn) -> Iterator[Difference]:
    alter = f"ALTER TABLE {_table(job_class)} ALTER COLUMN {sql.Identifier(column.name).as_string()}"
    if existing.nullable and not column.nullable:
        what = f"column {column.name} may be NULL, which {job_class.__name__}.{column.name} may not"
        yield Difference(job_class, what, f"{alter} SET NOT NULL")
    if existing.default is not None and column.default is None and not column.has_factory:
        what = (
            f"column {column.name} has the default {existing.default}, but {job_class.__name__}.{column.name} has none"
        )
        yield Difference(job_class, what, f"{alter} DROP DEFAULT")


def _check_differences(connection: Connection[Any], job_class: type[Job], checks: list[_Check]) -> Iterator[Difference]:
    """Conditions are compared as the planner prints them, so one that is written in another way is no difference."""
    columns = {column.name: column for column in definition(job_class).columns}
    present = [check for check in checks if check.column in columns]
    wanted = [(column, check) for column in columns.values() for check in column.checks]
    if not present and not wanted:
        return
    conditions = [sql.SQL(check.condition) for check in present]
    printed = _printed(connection, job_class, [*conditions, *(check for _, check in wanted)])
    printed_present, printed_wanted = printed[: len(present)], printed[len(present) :]
    table = _table(job_class)
    for check, text in zip(present, printed_present, strict=True):
        if text not in printed_wanted:
            what = (
                f"column {check.column} has a check that {job_class.__name__}.{check.column} has not, {check.condition}"
            )
            drop = sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(check.name)).as_string()
            yield Difference(job_class, what, f"ALTER TABLE {table} {drop}")
    for (column, condition), text in zip(wanted, printed_wanted, strict=True):
        if text not in printed_present:
            what = f"column {column.name} lacks a check of {job_class.__name__}.{column.name}"
            yield Difference(job_class, what, f"ALTER TABLE {table} ADD CHECK ({condition.as_string(connection)})")


def _printed(connection: Connection[Any], job_class: type[Job], conditions: list[sql.SQL | sql.Composed]) -> list[str]:
    """Empty texts, all alike, if the conditions can't be compared: a column has a type that one of them is not for."""
    shown = sql.SQL(", ").join(sql.SQL("({})").format(condition) for condition in conditions)
    table = identifier(definition(job_class).table)
    try:
        row = connection.execute(
            sql.SQL("EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT {} FROM {}").format(shown, table)
        ).fetchone()
    except (psycopg.ProgrammingError, psycopg.DataError):
        return [""] * len(conditions)
    assert row is not None
    return list(row[0][0]["Plan"]["Output"])


def _checks_of_tables(connection: Connection[Any], tables: list[str]) -> list[list[_Check]]:
    names = [identifier(table).as_string(connection) for table in tables]
    found: list[list[_Check]] = [[] for _ in tables]
    for place, *check in connection.execute(_CHECKS, [names]):
        found[place - 1].append(_Check(*check))
    return found


_CHECKS = """
SELECT given.place, k.conname, a.attname, pg_get_expr(k.conbin, k.conrelid)
FROM unnest(%s::text[]) WITH ORDINALITY AS given (name, place)
JOIN pg_constraint k ON k.conrelid = to_regclass(given.name) AND k.contype = 'c' AND cardinality(k.conkey) = 1
JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
ORDER BY given.place, k.conname
"""


def _table(job_class: type[Job]) -> str:
    return identifier(definition(job_class).table).as_string()
