"""What waits, runs and fails, and who works, now. Every query is bounded: none costs more because a table is large. Reads only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from psycopg import errors, sql
from psycopg.rows import tuple_row

from cluster import statements
from cluster.dashboard import error_groups
from cluster.dashboard.alike import Alike, alike
from cluster.dashboard.database import Connection
from cluster.dashboard.error_groups import Growing
from cluster.dashboard.job_tables import JobTable, all_tables

MOST = 10_000
"""Jobs of one table and status that are counted."""
NEWEST = 1_000
"""Jobs of one table, the last ones inserted, among which those that failed are counted."""

COMPARED = 100
"""Errors of one table that are compared, the last ones."""
UNREADABLE = (
    errors.QueryCanceled, errors.LockNotAvailable, errors.UndefinedTable, errors.UndefinedColumn, errors.InsufficientPrivilege,
)  # fmt: skip
"""What one table may say without the others having to suffer."""


@dataclass
class Summary:
    """One job type. ready: jobs by queue; oldest: seconds for which the oldest of them has waited; bound: counts end there.

    failed, finished: of the newest ones. error: the most frequent among `compared` of those that failed; None: none has a text.
    problem: why nothing can be counted.
    """

    table: JobTable
    ready: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    oldest: float | None = None
    bound: int = MOST
    failed: int = 0
    finished: int = 0
    error: Alike | None = None
    compared: int = 0
    problem: str | None = None

    @property
    def waiting(self) -> int:
        return self.jobs["not_started"]

    @property
    def is_full(self) -> bool:
        """Its limit is reached, where the limit is the table's."""
        return self.table.key is None and self.table.limit is not None and self.jobs["running"] >= self.table.limit


@dataclass(frozen=True)
class Node:
    """As cluster.nodes has it. drain_age_seconds: since it is told to drain; None: it is not."""

    id: str
    hostname: str
    pid: int
    version: str
    queues: list[str]
    jobs: list[str]
    state: str
    running: int
    slots: int
    heartbeat_age_seconds: float
    uptime_seconds: float
    drain_age_seconds: float | None
    drain_reason: str | None

    def serves(self, job_type: str, queue: str) -> bool:
        return self.state == "live" and job_type in self.jobs and not {"*", queue}.isdisjoint(self.queues)


@dataclass(frozen=True)
class Situation:
    """oldest_transaction: seconds, None: there is none that we see. paused: queues; the queue * stands for everything."""

    types: list[Summary]
    nodes: list[Node]
    trouble: list[dict[str, Any]]
    paused: list[dict[str, Any]]
    oldest_transaction: float | None
    schedules: list[dict[str, Any]] = field(default_factory=list)
    """Those that are overdue or deactivated: name, state, last_error, overdue_seconds."""
    growing: list[Growing] = field(default_factory=list)

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.state in ("live", "draining")]


async def look(connection: Connection) -> Situation:
    """In the caller's transaction."""
    tables = await all_tables(connection)
    nodes = await _rows(connection, statements.statement("show_nodes"))
    trouble = await _rows(connection, statements.statement("show_trouble"))
    paused = await _rows(connection, sql.SQL(_PAUSED_QUEUES))
    ((oldest, _),) = await _tuples(connection, statements.statement("find_oldest_transaction"))
    schedules = await _rows(connection, sql.SQL(_LATE_SCHEDULES))
    types = [await _summary(connection, table) for table in tables]
    growing = await _growing(connection)
    return Situation(types, [Node(**node) for node in nodes], trouble, paused, oldest, schedules, growing)


async def _growing(connection: Connection) -> list[Growing]:
    """Errors that come more often than before; none, where the dashboard's role may not read them."""
    try:
        async with connection.transaction():
            return await error_groups.growing(connection)
    except UNREADABLE:
        return []


async def look_at_nodes(connection: Connection) -> list[Node]:
    return [Node(**row) for row in await _rows(connection, statements.statement("show_nodes"))]


_PAUSED_QUEUES = "SELECT name, paused_at, paused_reason FROM cluster.queues WHERE paused_at IS NOT NULL ORDER BY name"

_LATE_SCHEDULES = """
SELECT name, state, last_error, extract(epoch FROM now() - overdue_since)::float8 AS overdue_seconds FROM cluster.schedules
WHERE overdue_since IS NOT NULL OR state = 'deactivated' ORDER BY overdue_since, name LIMIT 100
"""

_NEWEST = """
SELECT count(*) FILTER (WHERE status IN ('failed', 'timed_out')) AS failed,
       count(*) FILTER (WHERE status IN ('succeeded', 'failed', 'timed_out', 'cancelled')) AS finished,
       (array_agg(right(last_error, 400))
            FILTER (WHERE status IN ('failed', 'timed_out') AND last_error <> ''))[:{compared}] AS errors
FROM (SELECT status, last_error FROM {table} ORDER BY id DESC LIMIT {newest}) AS job
"""


async def _summary(connection: Connection, table: JobTable) -> Summary:
    """A table that is locked, dropped a moment ago or not ours to read has a problem, and the others are shown all the same."""
    summary = Summary(table)
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '200ms'")
            counted = statements.for_table("count_jobs", table.address, key=table.statement_key)
            for queue, status, age, jobs, bound in await _tuples(connection, counted, {"most": MOST}):
                _add(summary, queue, status, age, jobs, bound)
            newest = sql.SQL(_NEWEST).format(table=table.identifier, newest=NEWEST, compared=COMPARED)
            ((failed, finished, texts),) = await _tuples(connection, newest, {})
            summary.failed, summary.finished = failed, finished
            summary.compared = len(texts or [])
            summary.error = next(iter(alike(texts or [], 1)), None)
    except errors.QueryCanceled:
        summary.problem = "counting took too long"
    except errors.LockNotAvailable:
        summary.problem = "the table is locked"
    except (errors.UndefinedTable, errors.UndefinedColumn):
        summary.problem = "the table was changed or dropped a moment ago"
    except errors.InsufficientPrivilege:
        summary.problem = "the dashboard's role may not read this table"
    return summary


def _add(summary: Summary, queue: str, status: str, age: float | None, jobs: int, bound: int) -> None:
    summary.jobs[status] += jobs
    summary.bound = bound
    if status == "not_started":
        summary.ready[queue] += jobs
    if age is not None:
        summary.oldest = max(summary.oldest or 0.0, age)


async def _rows(connection: Connection, query: sql.SQL) -> list[dict[str, Any]]:
    return await (await connection.execute(query)).fetchall()


async def _tuples(
    connection: Connection, query: bytes | sql.SQL | sql.Composed, values: dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Columns of a statement may have no names, or the same."""
    return await (await connection.cursor(row_factory=tuple_row).execute(query, values)).fetchall()
