"""SQL statements, one per file in cluster/sql. The header comment of a file says what the statement is for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, cast

from psycopg import sql

_FOLDER = files("cluster") / "sql"


@cache
def text(name: str) -> str:
    """The statement in cluster/sql/{name}.sql without its comments, where a lone % or { would be read as a placeholder."""
    lines = (_FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("--"))


def statement(name: str) -> sql.SQL:
    """A statement that names no job table."""
    return sql.SQL(text(name))


@cache
def for_table(name: str, table: tuple[str, ...], columns: tuple[str, ...] = ()) -> bytes:
    """A statement on one job table (its schema and name): `{table}` becomes its name, `{columns}` a comma and the named
    columns, or nothing. As bytes, whose placeholders the driver parses only once."""
    listed = sql.SQL("").join(sql.SQL(", ") + sql.Identifier(column) for column in columns)
    escaped = sql.Identifier(*table).as_string(None).replace("%", "%%")  # or the driver would see a placeholder
    return statement(name).format(table=sql.SQL(cast("Any", escaped)), columns=listed).as_bytes(None)


def migrations() -> Mapping[str, str]:
    """File name to text of all migrations, in order."""
    folder = _FOLDER / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}
