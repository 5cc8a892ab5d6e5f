"""What a job waits for: cluster.why, as the job's page shows it. Reads only."""

from __future__ import annotations

from typing import Any

from psycopg import errors

from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import JobTable


async def why(connection: Connection, table: JobTable, number: int) -> list[dict[str, Any]]:
    """rank, reason, detail, remedy, the likeliest first. Empty: the dashboard's role may not ask, or it took too long."""
    try:
        async with connection.transaction():
            query = "SELECT rank, reason, detail, remedy FROM cluster.why(%s::oid, %s) ORDER BY rank"
            return await (await connection.execute(query, [table.oid, number])).fetchall()
    except (errors.InsufficientPrivilege, errors.QueryCanceled):
        return []


async def oldest_waiting(connection: Connection, table: JobTable) -> int | None:
    """The job that has waited for longest, or will begin first; None: none waits."""
    query = "SELECT cluster.oldest_waiting_job(%s::oid) AS id"
    row = await (await connection.execute(query, [table.oid])).fetchone()
    return None if row is None else row["id"]
