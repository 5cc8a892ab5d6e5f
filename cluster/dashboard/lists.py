"""Pages of one job table, newest first, and one job with all its columns. Reads only.

A page goes through the primary key from where the last one ended, and through SPAN rows at most: what a filter leaves out is read
all the same. A status that few jobs have is taken from its index, so that those that run are found among any number of others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from psycopg import sql

from cluster.dashboard import filters
from cluster.dashboard.alike import Alike, alike
from cluster.dashboard.database import Connection
from cluster.dashboard.filters import Condition, conditions_of, parameters
from cluster.dashboard.job_tables import Column, JobTable, quoted
from cluster.error_text import last_line
from cluster.secret import MASK
from cluster.selection import STATUSES, Selection

SPAN = 50_000
"""Rows that one page goes through at most."""
FEW = 5_000
"""Jobs of a status that are taken from its index and sorted."""
SIZES = (25, 50)
CELL, VALUE = 300, 20_000
"""Characters of a value in a list, and of one alone."""
LONGEST_DOWNLOAD = 64 * 2**20
"""Bytes of a value that is sent whole."""
WITH_ERROR = ("failed", "timed_out", "retry")
MOST_GROUPED = 1_000
"""Failed jobs whose errors are compared."""

_ID = re.compile(r"-?\d{1,19}", re.ASCII)
_TEXTS = ("queue", "error", "since", "group")
_TIMES = {"5m": 300, "1h": 3600, "24h": 86400, "7d": 7 * 86400}


@dataclass(frozen=True)
class Filter:
    """As the address has it. before: the id below which the page begins. Everything empty: all jobs."""

    status: tuple[str, ...] = ()
    queue: str = ""
    error: str = ""
    since: str = ""
    group: str = ""
    where: tuple[Condition, ...] = ()
    before: int | None = None
    size: int = SIZES[0]

    @classmethod
    def of(cls, query: Any) -> Filter:  # Any: starlette's multidict of a query or a form
        """What makes no sense is left out: an address may be years old. But conditions on columns: `checked` says what is wrong."""
        size = str(query.get("size", ""))
        return cls(
            tuple(dict.fromkeys(name for name in query.getlist("status") if name in STATUSES)),
            _text(query.get("queue")), _text(query.get("error")),
            since if (since := str(query.get("since", ""))) in _TIMES else "",
            _text(query.get("group")),
            conditions_of(query),
            job_id(str(query.get("before", ""))),
            int(size) if size in map(str, SIZES) else SIZES[0],
        )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        return not (self.status or self.queue or self.error or self.since or self.group or self.where)

    @property
    def problems(self) -> list[str]:
        """Conditions that can't be meant, and why."""
        return [f"{each.words}: {each.problem}" for each in self.where if each.problem]

    @property
    def told(self) -> dict[str, Any]:
        """For the audit."""
        found: dict[str, Any] = {name: value for name in ("status", *_TEXTS) if (value := getattr(self, name))}
        return found | ({"where": [each.words for each in self.where]} if self.where else {})

    def query(self, **changes: Any) -> str:
        """For an address; changes as the fields."""
        new = replace(self, **changes)
        pairs = new.pairs
        pairs += [("before", str(new.before))] if new.before is not None else []
        pairs += [("size", str(new.size))] if new.size != SIZES[0] else []
        return urlencode(pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What it asks for, as names and values of an address or a form."""
        pairs = [("status", name) for name in self.status]
        pairs += [(name, value) for name in _TEXTS if (value := getattr(self, name))]
        return pairs + [(each.name, each.value) for each in self.where]

    def selection(self, table: JobTable, possible: tuple[str, ...] = STATUSES) -> Selection:
        """possible: statuses that an action can do something about."""
        more, more_values = parameters(self.where)
        return Selection(
            tuple(name for name in possible if not self.status or name in self.status), self.queue or None, self.error or None,
            timedelta(seconds=_TIMES[self.since]) if self.since else None,
            group=(table.oid, self.group) if self.group else None, more=more, more_values=more_values,
        )  # fmt: skip


async def checked(connection: Connection, columns: list[Column], chosen: Filter) -> Filter:
    """With conditions that can be used, or say what is wrong with them."""
    return replace(chosen, where=await filters.checked(connection, columns, chosen.where))


def is_widened(query: Any) -> bool:  # Any: as of Filter.of
    """Whether a part of it makes no sense, so that a Filter lets more pass than was asked for."""
    texts = [str(query.get(name) or "").strip() for name in ("queue", "error")]
    statuses, since = query.getlist("status"), query.get("since") or ""
    return any(_text(text) != text for text in texts) or bool({*statuses} - {*STATUSES}) or since not in ("", *_TIMES)


def _text(value: object) -> str:
    """Without what Postgres can't hold."""
    text = str(value or "").strip().replace("\x00", "")
    return text.encode("utf-8", "replace").decode("utf-8")[:500]


def job_id(text: str) -> int | None:
    """None: it can't be the id of a job."""
    value = int(text) if _ID.fullmatch(text) else None
    return value if value is not None and -(2**63) <= value < 2**63 else None


@dataclass(frozen=True)
class Page:
    """next_before: where the next one begins, None: this is the last. read_to: the id to which was looked, None: to the end."""

    jobs: list[dict[str, Any]]
    next_before: int | None
    read_to: int | None


async def page(connection: Connection, table: JobTable, columns: list[Column], chosen: Filter) -> Page:
    """Of the jobs that pass; none, if the filter makes no sense."""
    if chosen.problems:
        return Page([], None, None)
    few = await _few(connection, table, columns, chosen)
    values = chosen.selection(table).values()
    values |= {"before": chosen.before or 2**63 - 1, "few": few, "limit": chosen.size + 1}
    fields = sql.SQL(", ").join(_field(column, CELL) for column in columns)
    conditions = (
        sql.SQL("") if chosen.is_empty else sql.SQL(" WHERE {}").format(sql.SQL(chosen.selection(table).where()))
    )
    parts = {"table": table.identifier, "fields": fields, "conditions": conditions, "span": sql.Literal(SPAN)}
    query = sql.SQL(_SPAN if few is None else _FEW).format(**parts)
    jobs = await (await connection.execute(query, values)).fetchall()
    for job_row in jobs:
        job_row["last_error"] = last_line(job_row["last_error"] or "")
    if len(jobs) > chosen.size:
        return Page(jobs[:-1], jobs[-2]["id"], None)
    if few is not None or chosen.is_empty:
        return Page(jobs, None, None)
    ends = await (await connection.execute(sql.SQL(_END).format(**parts), values)).fetchall()
    return Page(jobs, None, ends[0]["id"] if ends else None)


_SPAN = """
SELECT {fields} FROM (SELECT * FROM {table} WHERE id < %(before)s ORDER BY id DESC LIMIT {span}) AS job{conditions}
ORDER BY id DESC LIMIT %(limit)s
"""
_FEW = """
SELECT {fields} FROM (SELECT * FROM {table} WHERE id = ANY (%(few)s::bigint[]) AND id < %(before)s) AS job{conditions}
ORDER BY id DESC LIMIT %(limit)s
"""
_END = "SELECT id FROM {table} WHERE id < %(before)s ORDER BY id DESC OFFSET {span} LIMIT 1"


async def _few(connection: Connection, table: JobTable, columns: list[Column], chosen: Filter) -> list[int] | None:
    """Ids of the group, of a condition, or of the only status that is asked for, if an index has it and they are few."""
    if chosen.group:
        rows = await (await connection.execute(_OF_GROUP, [table.oid, chosen.group, FEW + 1])).fetchall()
        return list({row["job_id"] for row in rows}) if len(rows) <= FEW else None
    parts, values = list[str](), chosen.selection(table).values()
    indexed = {column.name for column in columns if column.is_indexed}
    for each in chosen.where:
        if each.operator in filters.INDEXED and each.column in indexed:
            parts = [each.clause]
            break
    else:
        if len(chosen.status) == 1:
            parts = _of_status(table, chosen.status[0])
    if not parts:
        return None
    each_part = sql.SQL(" UNION ALL ").join(
        sql.SQL("(SELECT id FROM {} WHERE " + part.replace("{", "{{").replace("}", "}}") + " LIMIT {})").format(  # noqa: S608
            table.identifier, FEW + 1
        )
        for part in parts
    )
    ids = [row["id"] for row in await (await connection.execute(each_part, values)).fetchall()]
    return ids if len(ids) <= FEW else None


_OF_GROUP = "SELECT job_id FROM cluster.failures WHERE job_table = %s::oid AND fingerprint = %s LIMIT %s"


def _of_status(table: JobTable, status: str) -> list[str]:
    """Conditions that its partial indexes serve. Empty: it has none."""
    open_rows = "" if table.key is None else " AND NOT parked"
    parts = [part.replace("{open}", open_rows) for part in _INDEXED.get(status, ())]
    return parts + (["parked"] if table.key is not None and status == "not_started" else [])


_INDEXED: Mapping[str, tuple[str, ...]] = {
    "running": ("status = 'running'",),
    "scheduled": ("status IN ('scheduled', 'retry') AND status = 'scheduled'",),
    "retry": ("status IN ('scheduled', 'retry') AND status = 'retry'",),
    "not_started": (
        "status = 'not_started' AND queue = 'default'{open}",
        "status = 'not_started' AND queue <> 'default'{open}",
    ),
}
"""Statuses that have partial indexes, in the words of these."""

_AS_THEY_ARE = {"bigint", "integer", "smallint", "boolean", "cluster.job_status"}


def _field(column: Column, longest: int) -> sql.Composable:
    """A user's value comes as text and cut: what it is must hurt nobody. So must a time that Python can't hold.

    In a list, the end of an error says what it was.
    """
    name = quoted(column.name)
    if column.is_secret:  # it never leaves the database
        return sql.SQL("CASE WHEN {} IS NOT NULL THEN {} END AS {}").format(name, MASK, name)
    if column.name == "last_error" and longest == CELL:
        return sql.SQL("right(last_error, 2000) AS last_error")
    if column.is_standard and column.type == "timestamp with time zone":
        return sql.SQL("CASE WHEN {} BETWEEN '0001-01-02' AND '9999-12-30' THEN {} END AS {}").format(name, name, name)
    if column.is_standard and column.type in _AS_THEY_ARE:
        return name
    return sql.SQL("left({}::text, {}) AS {}").format(name, longest + 1, name)


async def job(connection: Connection, table: JobTable, columns: list[Column], number: int) -> dict[str, Any] | None:
    """All columns of one. None: there is no such job."""
    fields = sql.SQL(", ").join(_field(column, VALUE) for column in columns)
    query = sql.SQL("SELECT {} FROM {} WHERE id = %s").format(fields, table.identifier)
    return await (await connection.execute(query, [number])).fetchone()


async def whole(connection: Connection, table: JobTable, column: Column, number: int) -> str | None:
    """A value as text. None: it is NULL, or longer than can be sent, or the job is gone."""
    name = quoted(column.name)
    query = sql.SQL(
        "SELECT {}::text AS value FROM {} WHERE id = %(id)s AND octet_length({}::text) <= %(longest)s"
    ).format(name, table.identifier, name)
    row = await (await connection.execute(query, {"id": number, "longest": LONGEST_DOWNLOAD})).fetchone()
    return row["value"] if row else None


async def last_errors(connection: Connection, table: JobTable, chosen: Filter) -> tuple[list[Alike], int]:
    """Of the newest failed jobs that pass the filter, most frequent first, and how many were compared."""
    if chosen.problems:
        return [], 0
    statuses = tuple(name for name in WITH_ERROR if not chosen.status or name in chosen.status)
    selection = replace(chosen, status=statuses).selection(table)
    query = sql.SQL(_ERRORS).format(
        table=table.identifier, span=SPAN, most=MOST_GROUPED, where=sql.SQL(selection.where())
    )
    rows = await (await connection.execute(query, selection.values())).fetchall()
    return alike((row["error"] for row in rows), 8), len(rows)


_ERRORS = """
SELECT right(last_error, 2000) AS error FROM (SELECT * FROM {table} ORDER BY id DESC LIMIT {span}) AS job
WHERE {where} ORDER BY id DESC LIMIT {most}
"""
