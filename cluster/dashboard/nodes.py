"""What nodes run, what they have set aside, and telling one to drain. Every query is bounded: what runs is found by its index."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import errors, sql

from cluster.dashboard.actions import Refused, note
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import JobTable, all_tables
from cluster.dashboard.overview import UNREADABLE

MOST = 1_000
"""Jobs of one table that are looked at."""
SHOWN_ALL = 200
"""Jobs that the page of a node names."""
SHOWN = 3
"""Jobs of a node that the list of nodes names: those that have run for longest."""


@dataclass(frozen=True)
class Running:
    """A job that a node has claimed, seconds ago."""

    table: JobTable
    id: int
    queue: str
    attempt: int
    seconds: float
    is_cancelled: bool


async def running(connection: Connection, node: UUID | None = None) -> dict[str, list[Running]]:
    """By node, those first that have run for longest. node: of this one alone. A table that can't be read is left out."""
    found = defaultdict[str, list[Running]](list)
    for table in await all_tables(connection):
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '200ms'")
                query = sql.SQL(_RUNNING).format(table=table.identifier)
                rows = await (await connection.execute(query, {"node": node, "most": MOST})).fetchall()
        except UNREADABLE:
            continue
        for row in rows:
            found[row.pop("node")].append(Running(table, **row))
    for jobs in found.values():
        jobs.sort(key=lambda job: -job.seconds)
    return found


_RUNNING = """
SELECT locked_by::text AS node, id, queue, attempts_count AS attempt, extract(epoch FROM now() - locked_at)::float8 AS seconds,
       cancel_requested_at IS NOT NULL AS is_cancelled
FROM (
    SELECT * FROM {table} WHERE status = 'running' AND %(node)s::uuid IS NULL
    UNION ALL
    SELECT * FROM {table} WHERE status = 'running' AND locked_by = %(node)s
) AS job LIMIT %(most)s
"""


async def trouble(connection: Connection, node: UUID) -> list[dict[str, Any]]:
    """What it has set aside, as it said with its last heartbeat."""
    query = """
    SELECT t.job_type, t.reason, t.detail, t.rows, (extract(epoch FROM now()) - t.since)::float8 AS seconds
    FROM cluster.nodes, jsonb_to_recordset(trouble) AS t (job_type text, reason text, detail text, rows bigint, since float8)
    WHERE id = %s AND state IN ('live', 'draining') ORDER BY t.since
    """
    return await (await connection.execute(query, [node])).fetchall()


async def may_drain(connection: Connection) -> bool:
    """Whether the dashboard's role in Postgres may."""
    query = """SELECT has_table_privilege('cluster.drains', 'INSERT') AND has_table_privilege('cluster.drains', 'DELETE')
               AND has_table_privilege('cluster.audit', 'INSERT') AS may"""
    row = await (await connection.execute(query)).fetchone()
    return bool(row and row["may"])


async def drain(connection: Connection, user: User, node: UUID, reason: str | None) -> str:
    """Refused: it has ended."""
    name = await _told(connection, "SELECT cluster.drain(%(node)s::uuid, %(reason)s)", node, reason)
    await note(connection, user, "drain", f"node {name}", {"reason": reason} if reason else None, None)
    return f"{name} claims nothing more. What runs goes on, and it stays."


async def undrain(connection: Connection, user: User, node: UUID) -> str:
    """Refused: it has ended."""
    name = await _told(connection, "SELECT cluster.undrain(%(node)s::uuid)", node, None)
    await note(connection, user, "undrain", f"node {name}", None, None)
    return f"{name} claims again."


async def _told(connection: Connection, query: str, node: UUID, reason: str | None) -> str:
    try:
        async with connection.transaction():
            await connection.execute(query.encode(), {"node": node, "reason": reason})
            found = await connection.execute(
                "SELECT hostname || ':' || pid AS name FROM cluster.nodes WHERE id = %s", [node]
            )
            row = await found.fetchone()
    except errors.UndefinedObject as error:
        raise Refused("Nothing was done: this node has ended.") from error
    assert row is not None
    return str(row["name"])
