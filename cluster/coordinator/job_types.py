"""The job types of a node: each class with its table in this database. Resolved at start, and again when a table comes or goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from psycopg import AsyncConnection

from cluster import events, statements, tables, tracing
from cluster.backoff import seconds_after
from cluster.job import Definition, Job, definition
from cluster.job_checks import STANDARD_COLUMNS
from cluster.statements import DEFAULT_QUEUE, Queue


@dataclass(eq=False)
class JobType:
    """A class as a coordinator uses it. index: its number in frames."""

    index: int
    job_class: type[Job]
    definition: Definition
    oid: int = 0
    """Of the table. 0: there is none at the moment, and the type is left out."""
    last_oid: int = 0
    """What it was when there last was one."""
    table: tuple[str, ...] = ()
    """Schema and name. Empty: never found yet."""
    key: statements.Key | None = None
    """The column whose values have a limit each. None: the limit is the type's, or the table was not found yet."""
    key_differs: bool = False
    """The table has another key than the class, so nothing of it is claimed."""

    def __post_init__(self) -> None:
        self.choose_columns(traced=False)

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def exclusive(self) -> bool:
        """Every job of this type needs a worker process to itself."""
        return not self.definition.is_async and self.job_class.isolation == "process"

    @property
    def max_attempts(self) -> int:
        return max(1, self.job_class.max_attempts)

    @property
    def timeout(self) -> float | None:
        return self.job_class.timeout.total_seconds() if self.job_class.timeout is not None else None

    def statement(self, name: str, queue: Queue = DEFAULT_QUEUE) -> bytes:
        """queue: that it goes through, if it does."""
        kind: Literal["default", "named", "others"] = "named"
        if queue is None or queue == DEFAULT_QUEUE:
            kind = "others" if queue is None else "default"
        return statements.for_table(name, self.table, self._columns, self.key, kind, self._bytes_of_row)

    def choose_columns(self, *, traced: bool) -> None:
        """Those that a claim returns. traced: the table has a column `traceparent`, which comes after those of the class."""
        self._columns = (*self.definition.column_names, *([tracing.COLUMN] if traced else []))
        sizes = [statements.column_bytes(column.name, column.type.name) for column in self.definition.columns]
        sizes += [statements.column_bytes(tracing.COLUMN, "text")] if traced else []
        self._bytes_of_row = " + ".join(filter(None, sizes))

    def delay(self, attempt: int) -> float:
        """Seconds of backoff after an attempt that ended with its worker process."""
        return seconds_after(self.job_class.backoff, attempt)


def job_types(job_classes: list[type[Job]]) -> list[JobType]:
    return [JobType(index, cls, definition(cls)) for index, cls in enumerate(job_classes)]


_FIND = """
SELECT given.place, c.oid, n.nspname, c.relname, CASE WHEN t.job_table IS NULL THEN a.attname ELSE t.concurrency_key END,
       format_type(a.atttypid, a.atttypmod), t.job_table IS NOT NULL,
       (SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'traceparent' AND NOT attisdropped
               AND atttypid = 'text'::regtype AND has_column_privilege(c.oid, attnum, 'SELECT'))
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS given (name, key, place)
JOIN pg_class AS c ON c.oid = to_regclass(given.name)
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN cluster.job_types AS t ON t.job_table = c.oid
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = given.key AND NOT a.attisdropped
"""


async def resolve(connection: AsyncConnection[Any], types: list[JobType]) -> None:
    """Finds every type's table, under the connection's search path, in one query; registers types that cluster.job_types lacks."""
    names = [tables.identifier(job_type.definition.table).as_string(connection) for job_type in types]
    keys = [job_type.job_class.concurrency_key for job_type in types]
    cursor = await connection.execute(_FIND, [names, keys])
    found = {row[0]: row[1:] for row in await cursor.fetchall()}
    for place, job_type in enumerate(types, 1):
        oid, schema, table, key, key_type, registered, columns, is_traced = found.get(place, (0, *[None] * 7))
        if not oid or not {*job_type.definition.column_names, *STANDARD_COLUMNS} <= set(columns):
            forget(job_type)
            continue
        job_type.choose_columns(traced=is_traced)
        column = job_type.job_class.concurrency_key
        if job_type.oid != oid:
            known = job_type.table != ()
            job_type.oid, job_type.last_oid, job_type.table = oid, oid, (schema, table)
            job_type.key = statements.Key(column, key_type) if column is not None and key_type is not None else None
            if not registered:
                await _register(connection, job_type)
            if known:
                events.table_found(job_type.name, job_type.definition.table)
        if key != column and not job_type.key_differs:
            events.concurrency_key_differs(job_type.name, column, key)
        job_type.key_differs = key != column


def forget(job_type: JobType) -> None:
    """Its table is gone, or lacks a column: everything else goes on."""
    if job_type.oid:
        job_type.oid = 0
        events.table_missing(job_type.name, job_type.definition.table)


async def _register(connection: AsyncConnection[Any], job_type: JobType) -> None:
    job_class = job_type.job_class
    await connection.execute(
        statements.statement("register_job_type"),
        {
            "name": job_type.name,
            "table": job_type.oid,
            "max_concurrency": job_class.max_concurrency,
            "concurrency_key": job_class.concurrency_key,
            "max_attempts": job_class.max_attempts,
            "max_crashes": job_class.max_crashes,
            "retention": job_class.retention,
            "retention_failed": job_class.retention_failed,
        },
    )


async def exists(connection: AsyncConnection[Any], oid: int) -> bool:
    """A table of this oid, whatever its name."""
    cursor = await connection.execute("SELECT EXISTS (SELECT FROM pg_class WHERE oid = %s)", [oid])
    return await cursor.fetchone() == (True,)
