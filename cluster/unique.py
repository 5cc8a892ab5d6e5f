"""Unique jobs: the index of a class that says `unique`, and what an INSERT into its table has to say.

The rows that exclude each other are those that wait for their first attempt: a change made while a job runs, or waits to be tried
again, enqueues another one, which will see it. By choice all that have not finished exclude each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import md5
from typing import Any, LiteralString

from psycopg import Connection, sql

from cluster.errors import SchemaMisfitError
from cluster.job import Job, definition
from cluster.tables import identifier

_WAITING: LiteralString = "status IN ('scheduled', 'not_started')"
_UNFINISHED: LiteralString = "status IN ('scheduled', 'not_started', 'retry', 'running')"


def condition(job_class: type[Job]) -> LiteralString:
    """Of the rows that exclude each other."""
    return _UNFINISHED if job_class.unique_while_running else _WAITING


def changes(connection: Connection[Any], job_class: type[Job]) -> Iterator[sql.Composed]:
    """What makes the table's index that of the class. SchemaMisfitError: rows that are there could not be in it."""
    name = definition(job_class).table
    table = identifier(name)
    *schema, bare = name.split(".")
    index = _index_name(bare)
    wanted = (True, list(job_class.unique), job_class.unique_while_running) if job_class.unique else None
    present = connection.execute(_PRESENT, [index, table.as_string()]).fetchone()
    if present == wanted:
        return
    if present is not None:
        yield sql.SQL("DROP INDEX {}").format(sql.Identifier(*schema, index))
    if wanted is not None:
        _check_rows(connection, job_class)
        yield sql.SQL("CREATE UNIQUE INDEX {} ON {} ({}) WHERE {}").format(
            sql.Identifier(index), table, _columns(job_class), sql.SQL(condition(job_class))
        )


_PRESENT = """
SELECT i.indisvalid,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::integer[]) WITH ORDINALITY AS k (number, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY place),
       pg_get_expr(i.indpred, i.indrelid) LIKE '%%running%%'
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relname = %s AND i.indrelid = to_regclass(%s)"""


def _index_name(table: str) -> str:
    """As cluster.index_name: a name has at most 63 bytes."""
    if len(table.encode()) <= 54:
        return f"{table}_unique"
    return f"{table[:24]}_{md5(table.encode(), usedforsecurity=False).hexdigest()[:8]}_unique"


def _columns(job_class: type[Job]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, job_class.unique))


def _check_rows(connection: Connection[Any], job_class: type[Job]) -> None:
    table = definition(job_class).table
    columns = connection.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = ANY (%s) AND NOT attisdropped",
        [identifier(table).as_string(), ["status", *job_class.unique]],
    ).fetchone()
    if columns != (len(job_class.unique) + 1,):
        return  # those of a new column are all alike, and the index says so
    present = sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier(name)) for name in job_class.unique)
    twice = connection.execute(
        sql.SQL(
            "SELECT {columns} FROM {table} WHERE {waiting} AND {present} GROUP BY {columns} HAVING count(*) > 1 LIMIT 1"
        ).format(
            columns=_columns(job_class), table=identifier(table), waiting=sql.SQL(condition(job_class)), present=present
        )
    ).fetchone()
    if twice is not None:
        key = ", ".join(f"{name} {value}" for name, value in zip(job_class.unique, twice, strict=True))
        raise SchemaMisfitError(
            f"table {table} of {job_class.__name__}: several jobs of {key} have not finished, so they can't be unique: cancel"
            " all but one of each, or let them finish"
        )
