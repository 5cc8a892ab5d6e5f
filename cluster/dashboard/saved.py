"""Filters that a team has saved under a name, for one job table each. Writes cluster.views."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cluster.dashboard import actions
from cluster.dashboard.actions import Refused
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import JobTable
from cluster.dashboard.lists import Filter

MOST = 50
"""Of one table."""
LONGEST_NAME = 60


@dataclass(frozen=True)
class SavedView:
    """query: as of an address."""

    name: str
    query: str
    who: str
    at: datetime


async def of_table(connection: Connection, table: JobTable) -> list[SavedView]:
    """By name."""
    query = "SELECT name, query, who, at FROM cluster.views WHERE job_table = %s::oid ORDER BY name"
    return [SavedView(**row) for row in await (await connection.execute(query, [table.oid])).fetchall()]


async def save(connection: Connection, user: User, table: JobTable, name: str, chosen: Filter) -> str:
    """One of the same name is replaced. Refused: it has no name, or there are enough."""
    name = " ".join(name.replace("\x00", "").split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise Refused(f"A view has a name of 1 to {LONGEST_NAME} characters.")
    if chosen.is_empty:
        raise Refused("A view needs a filter: without one it is the list itself.")
    present = {view.name for view in await of_table(connection, table)}
    if len(present | {name}) > MOST:
        raise Refused(f"A table has {MOST} views at most: delete one first.")
    query = """
    INSERT INTO cluster.views (job_table, name, query, who) VALUES (%s::oid, %s, %s, %s)
    ON CONFLICT (job_table, name) DO UPDATE SET query = excluded.query, who = excluded.who, at = now()
    """
    await connection.execute(query, [table.oid, name, chosen.query(before=None), user.name])
    await actions.note(connection, user, "save view", f"{table.sql_name}: {name}", chosen.told, None)
    return f"The view {name} is there for everybody."


async def delete(connection: Connection, user: User, table: JobTable, name: str) -> str:
    """Refused: there is none of the name."""
    query = "DELETE FROM cluster.views WHERE job_table = %s::oid AND name = %s RETURNING name"
    if await (await connection.execute(query, [table.oid, name.replace("\x00", "")])).fetchone() is None:
        raise Refused("There is no such view any more.")
    await actions.note(connection, user, "delete view", f"{table.sql_name}: {name}", None, None)
    return f"The view {name} is deleted."
