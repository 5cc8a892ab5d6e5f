"""SQL statements, one per file in cluster/sql. The header comment of a file says what the statement is for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

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


class Key(NamedTuple):
    """The column of a job table whose values have a limit each. type: as format_type() prints it."""

    column: str
    type: str


@cache
def for_table(name: str, table: tuple[str, ...], columns: tuple[str, ...] = (), key: Key | None = None) -> bytes:
    """A statement on one job table (its schema and name), as bytes, whose placeholders the driver parses only once.

    `{table}` becomes its name, `{columns}` a comma and the named columns, or nothing. For a table with a key, `{key}` and
    `{key_type}` are the column and its type, `{key_text}` is a comma and its value, `{open}` the condition of a row that is not
    parked; without one, the last two are nothing.
    """
    parts = {"table": _identifier(*table), "columns": "".join(f", {_identifier(column)}" for column in columns)}
    if key is None:
        parts |= {"key_text": "", "open": ""}
    else:
        column = _identifier(key.column)
        parts |= {"key": column, "key_type": key.type, "key_text": f", job.{column}::text", "open": " AND NOT parked"}
    return text(name).format(**parts).encode()


def _identifier(*names: str) -> str:
    """Quoted; a percent sign is doubled, or the driver would see a placeholder."""
    return sql.Identifier(*names).as_string(None).replace("%", "%%")


def migrations() -> Mapping[str, str]:
    """File name to text of all migrations, in order."""
    folder = _FOLDER / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}
