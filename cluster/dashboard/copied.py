"""What a page shows as SQL to copy: complete statements, names and values quoted, without what is secret. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from cluster.dashboard.job_tables import Column, JobTable
from cluster.dashboard.lists import VALUE, Filter


def of_list(table: JobTable, columns: Sequence[Column], chosen: Filter) -> str:
    """The jobs of a page, from its beginning. Empty: its filter makes no sense."""
    if chosen.problems:
        return ""
    where = ""
    if not chosen.is_empty:
        selection = chosen.selection(table)
        where = f"\nWHERE {_filled(selection.where(), selection.values())}"
    return f"SELECT {_names(columns)} FROM {table.sql_name}{where}\nORDER BY id DESC LIMIT {chosen.size};"  # noqa: S608 - text


def of_job(table: JobTable, columns: Sequence[Column], job: Mapping[str, Any], number: int) -> str:
    """The job, and another one with its values, as far as they are shown."""
    found = f"SELECT {_names(columns)} FROM {table.sql_name} WHERE id = {number};"  # noqa: S608 - text to be read
    values = {
        column.name: str(job[column.name])
        for column in columns
        if (not column.is_standard or column.name in ("queue", "priority"))
        and not column.is_secret and column.default != "identity" and job[column.name] is not None
    }  # fmt: skip
    if any(len(value) > VALUE for value in values.values()):
        return found
    names = ", ".join(sql.Identifier(name).as_string(None) for name in values)
    literals = ", ".join(sql.Literal(value).as_string(None) for value in values.values())
    return f"{found}\n\nINSERT INTO {table.sql_name} ({names})\nVALUES ({literals});"


def _names(columns: Sequence[Column]) -> str:
    if not any(column.is_secret for column in columns):
        return "*"
    return ", ".join(sql.Identifier(column.name).as_string(None) for column in columns if not column.is_secret)


def _filled(where: str, values: Mapping[str, Any]) -> str:
    """The condition with its values in their places."""

    def fill(found: re.Match[str]) -> str:
        return "%" if found[1] is None else sql.Literal(values[found[1]]).as_string(None).strip()

    return _PLACE.sub(fill, where)


_PLACE = re.compile(r"%%|%\((\w+)\)s")
