"""What the values of a column stand for: labels of rows that foreign keys point to, and which of them there are to choose from.

A column's `source` is SQL of two columns, value and label. One statement for each column and page, whatever the number of rows.
Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import errors, sql

from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column

LONGEST = 80
"""Characters of a label."""
OFFERED = 50
"""Rows that are offered at once."""
SPAN = 20_000
"""Rows of a source that are searched for a word, whatever index there is."""

_LABELS = """
SELECT value::text AS value, left(label::text, {longest}) AS label FROM ({source}) AS source (value, label)
WHERE value = ANY (%(values)s::{type}[])
"""
_ALL = """
SELECT value::text AS value, left(label::text, {longest}) AS label FROM ({source}) AS source (value, label) LIMIT {offered}
"""
_BY_VALUE = """
SELECT value::text AS value, left(label::text, {longest}) AS label FROM ({source}) AS source (value, label)
WHERE value = %(text)s::{type} LIMIT {offered}
"""
_BY_INDEX = """
SELECT value::text AS value, left(label::text, {longest}) AS label
FROM (SELECT * FROM ({source}) AS source (value, label) WHERE label >= %(text)s ORDER BY label LIMIT {offered}) AS source
WHERE starts_with(label::text, %(text)s)
"""
_BY_WORD = """
SELECT value::text AS value, left(label::text, {longest}) AS label
FROM (SELECT * FROM ({source}) AS source (value, label) LIMIT {span}) AS source
WHERE strpos(lower(label::text), lower(%(text)s)) > 0 LIMIT {offered}
"""
_NOT_TO_BE_HAD = (errors.DataError, errors.ProgrammingError, errors.QueryCanceled)
"""What is wrong with a source, or with what was typed, spoils no page: values go without labels."""

Labels = Mapping[str, Mapping[str, str]]
"""Of columns, of values as text."""


async def labels(connection: Connection, columns: Iterable[Column], jobs: Iterable[Mapping[str, Any]]) -> Labels:
    """Of all values of these jobs that have any."""
    rows, found = list(jobs), dict[str, Mapping[str, str]]()
    for column in columns:
        values = sorted({str(job[column.name]) for job in rows if job.get(column.name) is not None})
        if column.source is not None and values and not column.is_secret:
            pairs = await _ask(connection, column, _LABELS, {"values": values})
            found[column.name] = {value: label for value, label in pairs.items() if label != value}
    return found


async def options(connection: Connection, column: Column, text: str = "") -> dict[str, str]:
    """Values and labels, those first whose value is the text; empty: any."""
    if column.source is None or column.is_secret:
        return {}
    text = text.replace("\x00", "").strip()[:LONGEST]
    if not text:
        return await _ask(connection, column, _ALL, {})
    found = await _ask(connection, column, _BY_VALUE, {"text": text})
    if column.has_index:
        found |= await _ask(connection, column, _BY_INDEX, {"text": text})
    if len(found) < OFFERED:
        found |= await _ask(connection, column, _BY_WORD, {"text": text})
    return dict(list(found.items())[:OFFERED])


async def all_options(connection: Connection, columns: Iterable[Column]) -> dict[str, dict[str, str]]:
    """The first of each column that has any."""
    return {column.name: await options(connection, column) for column in columns if column.source is not None}


async def _ask(connection: Connection, column: Column, query: str, values: dict[str, Any]) -> dict[str, str]:
    statement = sql.SQL(query).format(
        source=_text(column.source or ""), type=_text(column.bare_type), longest=LONGEST, offered=OFFERED, span=SPAN
    )
    try:
        async with connection.transaction():
            rows = await (await connection.execute(statement, values)).fetchall()
    except _NOT_TO_BE_HAD:
        return {}
    return {row["value"]: row["label"] if row["label"] is not None else row["value"] for row in rows if row["value"]}


def _text(source: str) -> sql.SQL:
    """SQL from a catalog or the application, in a statement with parameters."""
    return sql.SQL(source.replace("%", "%%"))
