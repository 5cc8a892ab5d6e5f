"""Jobs as one INSERT. Any driver can send it: values go in one JSON document, which the server reads as the columns' own types.

So neither the driver nor this code needs to know those types, be they int2, citext or an enum. Pure: no connection is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, LiteralString, NamedTuple, Self

from psycopg import sql
from psycopg.types.json import Json, Jsonb

from cluster import tracing
from cluster.backoff import LONGEST_DELAY
from cluster.errors import EnqueueError
from cluster.job import Job, definition
from cluster.unique import condition


class Given(NamedTuple):
    """What is decided for standard columns; None is left to their defaults. traceparent: of the caller's span."""

    traceparent: str | None
    queue: str | None
    priority: int | None
    run_at: datetime | None
    delay: timedelta | None

    @classmethod
    def checked(
        # Any: callers without a type checker give anything.
        cls,
        delay: Any,
        run_at: Any,
        queue: str | None,
        priority: int | None,
    ) -> Self:
        if delay is not None and run_at is not None:
            raise EnqueueError("give delay or run_at, not both")
        if delay is not None and (not isinstance(delay, timedelta) or delay < timedelta(0)):
            raise EnqueueError(f"delay is a timedelta of zero or more, not {delay!r}")
        if run_at is not None and not isinstance(run_at, datetime):
            raise EnqueueError(f"run_at is a datetime with a time zone, not {run_at!r}")
        if run_at is not None and run_at.utcoffset() is None:
            raise EnqueueError(f"run_at {run_at!s} has no time zone: add one, such as datetime(…, tzinfo=timezone.utc)")
        return cls(
            None, queue, priority, run_at, None if delay is None else min(delay, timedelta(seconds=LONGEST_DELAY))
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, value in zip(GIVEN_COLUMNS, self, strict=True) if value is not None)

    def without_delay(self) -> Self:
        return self if self.delay is None else self._replace(delay=None)

    def for_class(self, job_class: type[Job]) -> Self:
        """With a column at least: neither COPY nor a SELECT inserts rows of none."""
        if definition(job_class).columns or any(self.columns):
            return self
        return self._replace(delay=timedelta(0))


GIVEN_COLUMNS = (tracing.COLUMN, "queue", "priority", "run_at", "run_at")


def one(job: Job, given: Given) -> tuple[LiteralString, list[Any]]:
    """The statement, which returns the id, and its values."""
    return _one(definition(type(job)).table, *_names(type(job), given), _on_conflict(type(job))), _sent(
        type(job), [job], given, "object"
    )


def native(job: Job, given: Given) -> tuple[LiteralString, list[Any]]:
    """As one, with a value for each column as psycopg adapts it: that saves the server work, on its own connections."""
    made = definition(type(job))
    names, delayed = _names(type(job), given)
    values = [column.value(getattr(job, column.name)) for column in made.columns]
    values += [value for value in given if value is not None]
    return _native(made.table, names, delayed, _on_conflict(type(job))), values


def existing(job: Job, given: Given) -> tuple[LiteralString, list[Any]]:
    """Asks for the id of the job that is in the way of this unique one, and its values."""
    table, columns = quoted(definition(type(job)).table), map(quoted_column, type(job).unique)
    same = " AND ".join(f"present.{name} = given.{name}" for name in columns)
    statement = (
        f"SELECT present.id FROM {table} AS present, json_populate_record(NULL::{table}, %s::text::json) AS given"  # noqa: S608
        f" WHERE {same} AND present.{condition(type(job))}"
    )
    return statement, _sent(type(job), [job], given.without_delay(), "object")


def many(job_class: type[Job], jobs: Sequence[Job], given: Given) -> tuple[LiteralString, list[Any]]:
    """The statement, which returns how many rows are new, and its values."""
    return _many(definition(job_class).table, *_names(job_class, given), _on_conflict(job_class)), _sent(
        job_class, jobs, given, "array"
    )


def _names(job_class: type[Job], given: Given) -> tuple[tuple[str, ...], bool]:
    """The columns that are in the document, and whether the time is an interval from now, by the database's clock."""
    return (*definition(job_class).column_names, *given.without_delay().columns), given.delay is not None


def _on_conflict(job_class: type[Job]) -> LiteralString:
    """Empty: the class is not unique. It names the class's own index, so that what another refuses is an error as ever."""
    if not job_class.unique:
        return ""
    columns = ", ".join(map(quoted_column, job_class.unique))
    return f" ON CONFLICT ({columns}) WHERE {condition(job_class)} DO NOTHING"


@cache
def _one(table: str, columns: tuple[str, ...], delayed: bool, conflict: LiteralString) -> LiteralString:
    return _insert(table, columns, delayed, "json_populate_record") + conflict + " RETURNING id"


@cache
def _native(table: str, columns: tuple[str, ...], delayed: bool, conflict: LiteralString) -> LiteralString:
    names = [*map(quoted_column, columns), *(["run_at"] if delayed else [])]
    values = ["%s"] * len(columns) + (["now() + %s"] if delayed else [])
    return f"INSERT INTO {quoted(table)} ({', '.join(names)}) VALUES ({', '.join(values)}){conflict} RETURNING id"  # noqa: S608


@cache
def _many(table: str, columns: tuple[str, ...], delayed: bool, conflict: LiteralString) -> LiteralString:
    inserted = _insert(table, columns, delayed, "json_populate_recordset")
    return f"WITH inserted AS ({inserted}{conflict} RETURNING 1) SELECT count(*) FROM inserted"  # noqa: S608 - names are quoted


def _insert(table: str, columns: tuple[str, ...], delayed: bool, reader: LiteralString) -> LiteralString:
    into = quoted(table)
    names = list(map(quoted_column, columns))
    values = [f"given.{name}" for name in names]
    if delayed:
        # First, since values go in the order in which they stand here.
        names.insert(0, "run_at")
        values.insert(0, "now() + %s::text::interval")
    selected = f"({', '.join(names)}) SELECT {', '.join(values)}"
    return f"INSERT INTO {into} {selected} FROM {reader}(NULL::{into}, %s::text::json) AS given"


def quoted(table: str) -> LiteralString:
    """A table's name in a statement with %s for values."""
    return ".".join(map(quoted_column, table.split(".")))


def quoted_column(name: str) -> LiteralString:
    """A column's name in a statement with %s for values. Percent signs are escaped: some drivers take two for two."""
    if "%" in name:
        return "U&" + sql.Identifier(name.replace("\\", "\\\\").replace("%", "\\0025")).as_string()
    return sql.Identifier(name).as_string()


def _sent(job_class: type[Job], jobs: Sequence[Job], given: Given, form: str) -> list[Any]:
    shared = {
        name: as_json(job_class, name, value)
        for name, value in zip(GIVEN_COLUMNS, given.without_delay(), strict=True)
        if value is not None
    }
    columns = definition(job_class).columns
    documents = [
        {column.name: as_json(job_class, column.name, column.value(getattr(job, column.name))) for column in columns}
        | shared
        for job in jobs
    ]
    document = _encode(documents if form == "array" else documents[0])
    return [document] if given.delay is None else [interval(given.delay), document]


_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder each time


def as_json(job_class: type[Job], name: str, value: Any) -> Any:
    """A value as Postgres' json_populate_record takes it: what is no JSON is text, as the column's type reads it."""
    if isinstance(value, Jsonb | Json):
        return value.obj
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, timedelta):
        return interval(value)
    if value is None or isinstance(value, bool):
        return value
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    if "\0" in text or not encodable(text):
        raise EnqueueError(f"{job_class.__name__}.{name} can't be stored: it holds a character that Postgres has not")
    return text


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def interval(value: timedelta) -> str:
    """By ISO 8601, which means the same under every `intervalstyle`: days and seconds have signs of their own."""
    seconds = f"{value.seconds}.{value.microseconds:06}"
    return f"P{value.days}DT{seconds}S"
