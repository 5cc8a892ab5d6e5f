"""Failed attempts by what they have in common, from cluster.failures: groups, one group, and the history of a job. Reads only.

Bounded on any table: counts end at MOST.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql

from cluster import statements
from cluster.dashboard.database import Connection
from cluster.dashboard.deploys import known_deploys
from cluster.dashboard.job_tables import JobTable
from cluster.error_text import title
from cluster.selection import Selection

MOST = 5_000
"""Failed attempts of a group that are counted."""
GROUPS = 50
"""That a page shows."""
SPANS = {"1h": (timedelta(hours=1), 30), "24h": (timedelta(days=1), 24), "7d": (timedelta(days=7), 28)}
"""What a page may look at: the time, and the parts of its trend."""
USUAL = "24h"
MOST_ATTEMPTS = 30
"""Failed attempts of a job that are shown, the last ones."""


@dataclass(frozen=True)
class ErrorGroup:
    """attempts: failed ones, MOST at most; recent: of the last five minutes. tables: how many of the newest 1,000 are whose.

    error: of the newest one. is_new: the first that is known came after the last deploy.
    """

    fingerprint: str
    attempts: int
    recent: int
    first_at: datetime
    last_at: datetime
    trend: list[int]
    tables: list[tuple[JobTable, int]]
    outcome: str
    error: str
    is_new: bool = False

    @property
    def title(self) -> str:
        return title(self.outcome, self.error)

    @property
    def is_bounded(self) -> bool:
        """There are more than were counted."""
        return self.attempts >= MOST


async def error_groups(
    connection: Connection, tables: list[JobTable], since: str, only: str | None = None
) -> list[ErrorGroup]:
    """The most frequent first. only: this fingerprint. Its tables are those of `tables` that are still there."""
    span, buckets = SPANS[since]
    values = {"only": only, "since": span, "most": MOST, "buckets": buckets, "groups": GROUPS}
    rows = await (await connection.execute(statements.statement("list_error_groups"), values)).fetchall()
    deploys = await known_deploys(connection) if rows else []
    found = [_group(row, {str(table.oid): table for table in tables}) for row in rows]
    return [replace(group, is_new=bool(deploys) and group.first_at >= deploys[-1].at) for group in found]


def _group(row: dict[str, Any], tables: dict[str, JobTable]) -> ErrorGroup:
    counted = sorted(row.pop("tables").items(), key=lambda item: -item[1])
    error = row.pop("error") or ""
    return ErrorGroup(**row, error=error, tables=[(tables[oid], jobs) for oid, jobs in counted if oid in tables])


async def count_failed(connection: Connection, table: JobTable, fingerprint: str) -> int:
    """Jobs of the table that have failed for good with this error, MOST at most."""
    selection = Selection(("failed", "timed_out"), group=(table.oid, fingerprint))
    query = sql.SQL("SELECT count(*) AS jobs FROM (SELECT FROM {} AS job WHERE {} LIMIT {}) AS found").format(
        table.identifier, sql.SQL(selection.where()), MOST
    )
    row = await (await connection.execute(query, selection.values())).fetchone()
    assert row is not None
    jobs: int = row["jobs"]
    return jobs


async def attempts(connection: Connection, table: JobTable, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The failed ones of a job, oldest first. Those of another job that had its id before are not among them."""
    query = """
    SELECT attempt, at, node::text, outcome, fingerprint, error FROM cluster.failures
    WHERE job_table = %s::oid AND job_id = %s AND at >= coalesce(%s::timestamptz, '-infinity')
    ORDER BY at DESC, attempt DESC LIMIT %s
    """
    rows = await (await connection.execute(query, [table.oid, job["id"], job["created_at"], MOST_ATTEMPTS])).fetchall()
    return [row | {"title": title(row["outcome"], row["error"] or "")} for row in reversed(rows)]


@dataclass(frozen=True)
class Growing:
    """An error that comes more often than before. attempts: failed in the last ten minutes; before: in the hour before those."""

    fingerprint: str
    attempts: int
    before: int
    title: str


async def growing(connection: Connection) -> list[Growing]:
    """Five at most."""
    rows = await (await connection.execute(statements.statement("list_growing_errors"))).fetchall()
    return [
        Growing(row["fingerprint"], row["attempts"], row["before"], title(row["outcome"], row["error"] or ""))
        for row in rows
    ]
