"""SQL statements, one per file in cluster/sql. The header comment of a file says what the statement is for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple, TypeAlias

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


Queue: TypeAlias = str | None
"""What a claim goes through in claim order: the queue "default", another one, or (None) all but "default", by one index each."""
DEFAULT_QUEUE = "default"

LARGEST_ROW, CLAIM_BYTES = 128 * 2**20, 16 * 2**20
"""Bytes of a row that no node takes any more, and of all rows of one claim, unless it takes a single one."""


@cache
def for_table(
    name: str,
    table: tuple[str, ...],
    columns: tuple[str, ...] = (),
    key: Key | None = None,
    queue: Literal["default", "named", "others"] = "default",
    bytes_of_row: str = "",
) -> bytes:
    """A statement on one job table (its schema and name), as bytes, whose placeholders the driver parses only once.

    `{table}` becomes its name, `{columns}` a comma and the named columns, or nothing; `{queue_is}` the condition of the queue that
    is gone through, if it is not paused. For a table with a key, `{key}` and `{key_type}` are the column and its type, `{key_text}`
    is a comma and its value, called key, `{key_name}` a comma and that name, `{open}` the condition of a row that is not parked,
    `{parked}` counts those that are; without one, the last four are nothing.
    bytes_of_row: SQL for the size of a row; empty: all rows are small, and the parts about size are nothing.
    """
    parts = {
        "table": _identifier(*table), "columns": "".join(f", {_identifier(column)}" for column in columns),
        "queue_is": _QUEUE_IS[queue],
    }  # fmt: skip
    if key is None:
        parts |= {"key_text": "", "key_name": "", "open": "", "parked": ""}
    else:
        column = _identifier(key.column)
        parts |= {"key": column, "key_type": key.type, "open": " AND NOT parked"}
        parts |= {"key_text": f", job.{column}::text AS key", "key_name": ", key"}
        parts["parked"] = _PARKED.format(table=parts["table"], key=column)
    parts |= _sizes(parts["table"], bytes_of_row)
    return text(name).format(**parts).encode()


_QUEUE_IS = {
    "default": """queue = 'default'
      AND NOT EXISTS (SELECT FROM cluster.queues WHERE name = 'default' AND paused_at IS NOT NULL)""",
    "named": """queue <> 'default' AND queue = %(queue)s
      AND NOT EXISTS (SELECT FROM cluster.queues WHERE name = %(queue)s AND paused_at IS NOT NULL)""",
    "others": """(queue < 'default' OR queue > 'default')
      AND CASE WHEN queue = ANY (ARRAY(SELECT name FROM cluster.queues WHERE paused_at IS NOT NULL)) THEN false ELSE true END""",
}
"""Literals, in the words of the partial indexes. CASE, here and in the statements: the planner would take a bare comparison with an
array for one that hardly any row passes, and sort."""

_PARKED = """
UNION ALL
SELECT queue, 'not_started', extract(epoch FROM now() - min(run_at))::float8, count(*)
FROM (SELECT queue, run_at FROM {table} WHERE parked ORDER BY {key}, priority, run_at, id LIMIT %(most)s) AS found GROUP BY queue"""


def _sizes(table: str, bytes_of_row: str) -> dict[str, str]:
    """The parts of a claim that bound what it fetches, and fail rows that are too large, before anything of them is sent."""
    if not bytes_of_row:
        return dict.fromkeys(("bytes", "bytes_upto", "bytes_fit", "bytes_small", "too_large"), "")
    return {
        "bytes": f", {bytes_of_row} AS bytes",
        "bytes_upto": f", bytes, sum(CASE WHEN bytes <= {LARGEST_ROW} THEN bytes ELSE 0 END) OVER best AS bytes_upto",
        "bytes_fit": f" AND bytes <= {LARGEST_ROW} AND (bytes_upto <= {CLAIM_BYTES} OR bytes_upto = bytes)",
        "bytes_small": f" AND bytes <= {LARGEST_ROW}",
        "too_large": _TOO_LARGE.format(table=table, largest=LARGEST_ROW, megabytes=LARGEST_ROW >> 20),
    }


_TOO_LARGE = """, too_large AS (
    UPDATE {table} AS job SET status = 'failed', finished_at = now(), updated_at = now(),
        last_error = 'this row has ' || (SELECT bytes FROM placed WHERE placed.id = job.id) / 1048576 || ' MB, and a node takes'
            || ' {megabytes} MB at most: keep large values elsewhere, and where they are in the row'
    WHERE id = ANY (ARRAY(SELECT id FROM placed WHERE bytes > {largest}))
    RETURNING cluster.note_failures(job.tableoid, ARRAY[id], ARRAY[attempts_count + 1], ARRAY[NULL::uuid], ARRAY['too_large'],
                                    ARRAY['too_large'], ARRAY[last_error])
)"""


def column_bytes(column: str, type_name: str) -> str:
    """SQL for the bytes of a value, which reads a large one only where there is no other way; empty: it has few, always.

    The size of text and bytea is written in their header, also of one that is compressed or stored elsewhere.
    """
    name = _identifier(column)
    match type_name:
        case "text":
            return f"coalesce(octet_length({name}::text), 0)"
        case "bytea":
            return f"coalesce(octet_length({name}), 0)"
        case "jsonb" | "numeric":
            size = f"pg_column_size({name})"
            return f"coalesce(CASE WHEN {size} > 2000 THEN octet_length({name}::text) ELSE {size} END, 0)"
        case _:
            return ""


def _identifier(*names: str) -> str:
    """Quoted; a percent sign is doubled, or the driver would see a placeholder."""
    return sql.Identifier(*names).as_string(None).replace("%", "%%")


def migrations() -> Mapping[str, str]:
    """File name to text of all migrations, in order."""
    folder = _FOLDER / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}
