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
    compared: list[_Compared] = []
    existing_of = [columns or {} for columns in columns_of_tables(connection, names)]
    checks_of = _checks_of_tables(connection, names)
    defaults_of = default_changes(connection, [(cls, there) for cls, there in zip(classes, existing_of, strict=True)])
    for job_class, existing, checks, defaults in zip(classes, existing_of, checks_of, defaults_of, strict=True):
        for column in definition(job_class).columns:
            if column.name in existing:
                found += _column_differences(job_class, column, existing[column.name])
        what = f"a default is not that of {job_class.__name__}"
        found += (Difference(job_class, what, change.as_string(connection)) for change in defaults)
        if existing:
            compared.append(_compared(job_class, checks))
    compared = [each for each in compared if each.present or each.wanted]
    for each, printed in zip(compared, _printed(connection, [each.statement() for each in compared]), strict=True):
        found += each.differences(printed) if printed is not None else ()
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


@dataclass(frozen=True)
class _Compared:
    """Conditions of one table, compared as the planner prints them: one that is written in another way is no difference."""

    job_class: type[Job]
    present: list[_Check]
    wanted: list[tuple[Column, sql.Composed]]

    def statement(self) -> sql.Composed:
        conditions: list[sql.Composable] = [sql.SQL(check.condition) for check in self.present]
        conditions += (condition for _, condition in self.wanted)
        shown = sql.SQL(", ").join(sql.SQL("({})").format(condition) for condition in conditions)
        return sql.SQL("EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT {} FROM {}").format(
            shown, identifier(definition(self.job_class).table)
        )

    def differences(self, printed: list[str]) -> Iterator[Difference]:
        """printed: in the order of the statement."""
        name, table = self.job_class.__name__, _table(self.job_class)
        printed_present, printed_wanted = printed[: len(self.present)], printed[len(self.present) :]
        for check, text in zip(self.present, printed_present, strict=True):
            if text not in printed_wanted:
                what = f"column {check.column} has a check that {name}.{check.column} has not, {check.condition}"
                drop = sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(check.name)).as_string()
                yield Difference(self.job_class, what, f"ALTER TABLE {table} {drop}")
        for (column, condition), text in zip(self.wanted, printed_wanted, strict=True):
            if text not in printed_present:
                what = f"column {column.name} lacks a check of {name}.{column.name}"
                yield Difference(self.job_class, what, f"ALTER TABLE {table} ADD CHECK ({condition.as_string()})")


def _compared(job_class: type[Job], checks: list[_Check]) -> _Compared:
    columns = {column.name: column for column in definition(job_class).columns}
    wanted = [(column, check) for column in columns.values() for check in column.checks]
    return _Compared(job_class, [check for check in checks if check.column in columns], wanted)


def _printed(connection: Connection[Any], statements: list[sql.Composed]) -> list[list[str] | None]:
    """The conditions of each statement as the planner prints them. None: a column has a type that one of them is not for.

    All at once, since a network is slow; one by one, if one of them is an error.
    """
    try:
        with connection.pipeline():
            cursors = [connection.execute(statement) for statement in statements]
        return [_outputs(cursor.fetchone()) for cursor in cursors]
    except (psycopg.ProgrammingError, psycopg.DataError):
        return [_printed_alone(connection, statement) for statement in statements]


def _printed_alone(connection: Connection[Any], statement: sql.Composed) -> list[str] | None:
    try:
        return _outputs(connection.execute(statement).fetchone())
    except (psycopg.ProgrammingError, psycopg.DataError):
        return None


def _outputs(row: tuple[Any, ...] | None) -> list[str]:
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
