"""Conditions on any column of a job table, as an address has them: `customer_id.eq=42`. Pure, but for `checked`, which reads.

Names go in as quoted identifiers, values as parameters. What can't be meant has a problem, and is never just left out: an action on
all that match would do more than was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import errors

from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column, quoted

LONGEST = 2_000
"""Characters of a value."""
MOST = 20

OPERATORS: Mapping[str, str] = {
    "eq": "is", "ne": "is not", "lt": "below", "le": "at most", "gt": "above", "ge": "at least", "has": "contains",
    "starts": "starts with", "null": "is NULL", "set": "is not NULL",
}  # fmt: skip
"""In an address, and in words."""
WITHOUT_VALUE = ("null", "set")
INDEXED = ("eq", "lt", "le", "gt", "ge")
"""Those that an index on the column serves."""

_ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
_EQUAL = ("eq", "ne")
_OF_CATEGORY: Mapping[str, tuple[str, ...]] = {
    "S": ("eq", "ne", "has", "starts"), "N": _ORDERED, "D": _ORDERED, "T": _ORDERED, "B": _EQUAL, "E": _EQUAL, "A": ("has",),
    "I": _EQUAL,
}  # fmt: skip
_OF_TYPE: Mapping[str, tuple[str, ...]] = {"uuid": _EQUAL, "jsonb": ("has",), "json": ("has",)}
_CLAUSES: Mapping[str, str] = {
    "eq": "{column} = {value}", "ne": "{column} IS DISTINCT FROM {value}", "lt": "{column} < {value}", "le": "{column} <= {value}",
    "gt": "{column} > {value}", "ge": "{column} >= {value}", "starts": "starts_with({column}::text, {value}::text)",
    "null": "{column} IS NULL", "set": "{column} IS NOT NULL",
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """problem: why it can't be meant; empty: it can. clause: as SQL; empty: it was not checked yet."""

    column: str
    operator: str
    value: str = ""
    problem: str = ""
    clause: str = ""

    @property
    def name(self) -> str:
        """In an address."""
        return f"{self.column}.{self.operator}"

    @property
    def words(self) -> str:
        said = f"{self.column} {OPERATORS[self.operator]}"
        return said if self.operator in WITHOUT_VALUE else f"{said} {self.value}"


def conditions_of(query: Any) -> tuple[Condition, ...]:  # Any: starlette's multidict of a query or a form
    """Those of an address, and what the form of a page has: three lists, of columns, operators and values."""
    found = []
    for key, value in query.multi_items():
        column, _, operator = key.rpartition(".")
        if column and operator in OPERATORS:
            found.append(_condition(column, operator, value))
    form = zip(query.getlist("column"), query.getlist("op"), query.getlist("value"), strict=False)
    for column, operator, value in form:
        if column and operator in OPERATORS and (value.strip() or operator in WITHOUT_VALUE):
            found.append(_condition(column, operator, value))
    return tuple(dict.fromkeys(found))


def _condition(column: str, operator: str, value: str) -> Condition:
    text = "" if operator in WITHOUT_VALUE else value.encode("utf-8", "replace").decode("utf-8")
    problem = "Postgres can't hold a NUL character" if "\x00" in text + column else ""
    if len(text) > LONGEST:
        problem = f"a value has {LONGEST} characters at most"
    return Condition(column.replace("\x00", ""), operator, text.replace("\x00", "")[:LONGEST], problem)


def operators_of(column: Column) -> tuple[str, ...]:
    """What makes sense for its type. Empty: nothing, since nobody may know its values."""
    if column.is_secret:
        return ()
    by_type = _OF_TYPE.get(column.bare_type) or _OF_CATEGORY.get(column.category, ())
    return (*by_type, *WITHOUT_VALUE)


async def checked(
    connection: Connection, columns: Sequence[Column], conditions: Sequence[Condition]
) -> tuple[Condition, ...]:
    """Each with its clause, or with its problem. A time is written out: `yesterday` stays the same day, and has its zone."""
    by_name = {column.name: column for column in columns}
    return tuple(
        [
            await _checked(connection, by_name.get(condition.column), condition, number)
            for number, condition in enumerate(conditions)
        ]
    )


async def _checked(connection: Connection, column: Column | None, condition: Condition, number: int) -> Condition:
    problem = condition.problem
    if column is None:
        problem = "there is no such column"
    elif column.is_secret:
        problem = "its values are secret"
    elif condition.operator not in operators_of(column):
        problem = f"that can't be asked of {column.type}"
    elif number >= MOST:
        problem = f"{MOST} conditions are enough"
    if problem or column is None:
        return replace(condition, problem=problem)
    parameter = f"%(where{number})s"
    clause = _clause(column, condition.operator, quoted(column.name).as_string(None), parameter)
    if condition.operator in WITHOUT_VALUE:
        return replace(condition, clause=clause)
    given, of_nothing = _value(column, condition.operator, "%(value)s"), f"NULL::{_type(column.bare_type)}"
    probe = (
        f"SELECT value::text AS value FROM (SELECT {given} AS value) AS given"  # noqa: S608 - types, as Postgres writes them
        f" WHERE value IS NOT NULL OR {_clause(column, condition.operator, of_nothing, '%(value)s')}"
    )
    try:
        async with connection.transaction():
            row = await (await connection.execute(probe.encode(), {"value": condition.value})).fetchone()
    except (errors.DataError, errors.IntegrityError, errors.ProgrammingError) as error:
        return replace(condition, problem=error.diag.message_primary or str(error))
    value = row["value"] if row and column.category == "D" else condition.value
    return replace(condition, value=value, clause=clause)


def parameters(conditions: Sequence[Condition]) -> tuple[str, dict[str, str]]:
    """All of them as one condition, and its named values. ValueError: one has a problem, or was not checked."""
    if any(not condition.clause for condition in conditions):
        raise ValueError("a filter that was not checked")
    clauses = " AND ".join(condition.clause for condition in conditions)
    return clauses, {f"where{number}": condition.value for number, condition in enumerate(conditions)}


def _clause(column: Column, operator: str, name: str, parameter: str) -> str:
    value = _value(column, operator, parameter)
    if operator != "has":
        return _CLAUSES[operator].format(column=name, value=value)
    if column.category == "A":
        return f"{value} = ANY ({name})"
    if column.bare_type in ("json", "jsonb"):
        return f"{name}::jsonb @> {value}"
    return f"strpos({name}::text, {value}) > 0"


def _value(column: Column, operator: str, parameter: str) -> str:
    if operator in ("has", "starts") and column.category == "S":
        return f"{parameter}::text"
    if column.bare_type in ("json", "jsonb"):
        return f"{parameter}::jsonb"
    return f"{parameter}::{_type(column.element if column.category == 'A' else column.bare_type)}"


def _type(name: str | None) -> str:
    """As Postgres quotes it, in a statement with parameters."""
    return (name or "text").replace("%", "%%")
