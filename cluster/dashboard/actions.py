"""What people do to jobs, types and queues, one at a time; each leaves a row in cluster.audit, in the same transaction.

Writes job tables by `cluster.cancel`, `cluster.retry` and as below; the operators' columns of cluster.job_types; cluster.queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import errors, sql
from psycopg.types.json import Jsonb
from starlette.exceptions import HTTPException

from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column, JobTable, quoted
from cluster.selection import FINISHED, WAITING

VIA = "dashboard"
LONGEST_SECRET = 20_000
"""Characters of one that is shown."""


class Refused(HTTPException):
    """It can't be done, and the text says why. What the transaction has done so far is undone."""

    def __init__(self, text: str) -> None:
        super().__init__(409, text)


POSSIBLE: Mapping[str, tuple[str, ...]] = {
    "retry": FINISHED, "again": FINISHED, "now": ("scheduled", "retry"), "cancel": (*WAITING, "running"),
    "delete": (*WAITING, *FINISHED),
}  # fmt: skip
"""Actions on a job, and the statuses in which they make sense."""

_STATEMENTS: Mapping[str, str] = {
    "retry": "SELECT cluster.retry(%(oid)s::oid, %(id)s)::text AS said",
    "cancel": "SELECT cluster.cancel(%(oid)s::oid, %(id)s)::text AS said",
    "now": "UPDATE {table} SET run_at = now() WHERE id = %(id)s AND status IN ('scheduled', 'retry') RETURNING 'now' AS said",
    "delete": "DELETE FROM {table} WHERE id = %(id)s AND status <> 'running' RETURNING 'deleted' AS said",
    "again": "INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE id = %(id)s RETURNING id::text AS said",
}
_DONE = {
    "retry": "Job {id} begins again, with all its attempts.", "now": "Job {id} is due now.", "delete": "Job {id} is deleted.",
    "again": "Job {said} is a new one with the values of job {id}.",
}  # fmt: skip


async def act(
    connection: Connection, user: User, action: str, table: JobTable, columns: list[Column], number: int
) -> str:
    """Says what came of it. Refused: the job is not, or no longer, what the action is for."""
    statement = sql.SQL(_STATEMENTS[action]).format(table=table.identifier, columns=copied(columns))
    try:
        async with connection.transaction():
            row = await (await connection.execute(statement, {"oid": table.oid, "id": number})).fetchone()
    except errors.ObjectNotInPrerequisiteState as error:
        raise Refused(str(error.diag.message_primary)) from error
    said = row["said"] if row else None
    if said is None:
        raise Refused(f"Nothing was done: job {number} is gone, or it is running or finished by now.")
    text = _cancelled(number, said) if action == "cancel" else _DONE[action].format(id=number, said=said)
    await note(connection, user, action, f"{table.sql_name} {number}", None, 1)
    return text


def copied(columns: list[Column]) -> sql.Composed:
    """Those that a new job has from another one."""
    values = [
        c.name for c in columns if not c.is_standard and c.default != "identity" and "nextval(" not in (c.default or "")
    ]
    return sql.SQL(", ").join(map(quoted, ["queue", "priority", *values]))


def _cancelled(number: int, status: str) -> str:
    if status == "running":
        return f"Job {number} runs: its node was told to stop it."
    if status != "cancelled":
        raise Refused(f"Nothing was done: job {number} has finished already.")
    return f"Job {number} is cancelled."


async def move(connection: Connection, user: User, table: JobTable, number: int, queue: str, priority: str) -> str:
    """A job that waits, to another queue or priority; what is empty stays. Refused: it waits no longer, or Postgres says no."""
    query = sql.SQL(_MOVE).format(table=table.identifier)
    given = {"id": number, "queue": queue.strip().replace("\x00", "") or None, "priority": priority.strip() or None}
    try:
        async with connection.transaction():
            row = await (await connection.execute(query, given)).fetchone()
    except (errors.CheckViolation, errors.DataError) as error:
        raise Refused(
            "A priority is 1 to 100, lower runs first; the name of a queue has 1 to 128 characters."
        ) from error
    if row is None:
        raise Refused(f"Nothing was done: job {number} is gone, or it waits no longer.")
    changed = {name: value for name, value in given.items() if name != "id" and value}
    await note(connection, user, "move", f"{table.sql_name} {number}", changed, 1)
    return f"Job {number} is in queue {row['queue']} with priority {row['priority']}."


_MOVE = """
UPDATE {table} SET queue = coalesce(%(queue)s, queue), priority = coalesce(%(priority)s::smallint, priority), updated_at = now()
WHERE id = %(id)s AND status IN ('not_started', 'scheduled', 'retry') RETURNING queue, priority
"""


async def show_secret(connection: Connection, user: User, table: JobTable, column: Column, number: int) -> str:
    """What is in it, and that somebody looked. Refused: nothing is."""
    name = quoted(column.name)
    query = sql.SQL("SELECT left({}::text, {}) AS value FROM {} WHERE id = %s").format(
        name, LONGEST_SECRET, table.identifier
    )
    row = await (await connection.execute(query, [number])).fetchone()
    if row is None or row["value"] is None:
        raise Refused(f"Job {number} has no {column.name}.")
    await note(connection, user, "show", f"{table.sql_name} {number}", {"column": column.name}, 1)
    value: str = row["value"]
    return value


async def pause_type(connection: Connection, user: User, table: JobTable, reason: str | None) -> str:
    await connection.execute("SELECT cluster.pause(%s::oid::regclass, %s)", [table.oid, reason])
    await note(connection, user, "pause", table.name, {"reason": reason} if reason else None, None)
    return f"{table.name} is paused: nothing of it begins. What runs goes on."


async def resume_type(connection: Connection, user: User, table: JobTable) -> str:
    await connection.execute("SELECT cluster.resume(%s::oid::regclass)", [table.oid])
    await note(connection, user, "resume", table.name, None, None)
    return f"{table.name} goes on."


async def pause_queue(connection: Connection, user: User, queue: str, reason: str | None) -> str:
    """The queue * stands for everything."""
    if not queue or len(queue) > 128 or "\x00" in queue:
        raise Refused("The name of a queue has 1 to 128 characters.")
    if queue == "*":
        await connection.execute("SELECT cluster.pause(NULL::regclass, %s)", [reason])
    else:
        await connection.execute("SELECT cluster.pause(%s::text, %s)", [queue, reason])
    await note(connection, user, "pause", f"queue {queue}", {"reason": reason} if reason else None, None)
    what = "Everything is paused: nothing" if queue == "*" else f"Queue {queue} is paused: nothing in it"
    return f"{what} begins. What runs goes on."


async def resume_queue(connection: Connection, user: User, queue: str) -> str:
    """The queue * stands for everything."""
    if queue == "*":
        await connection.execute("SELECT cluster.resume(NULL::regclass)")
    else:
        await connection.execute("SELECT cluster.resume(%s::text)", [queue])
    await note(connection, user, "resume", f"queue {queue}", None, None)
    return "Everything goes on." if queue == "*" else f"Queue {queue} goes on."


async def set_limit(connection: Connection, user: User, table: JobTable, text: str) -> str:
    """Empty: that of the class again."""
    text = text.strip()
    if text and not (text.isascii() and text.isdecimal() and int(text) < 2**31):
        raise Refused("A limit is a whole number, 0 or more; leave it empty for the class's own.")
    query = "UPDATE cluster.job_types SET max_concurrency_override = %s WHERE job_table = %s::oid"
    await connection.execute(query, [int(text) if text else None, table.oid])
    await note(connection, user, "limit", table.name, {"limit": text or None}, None)
    return f"{table.name}: at most {text} at once." if text else f"{table.name}: the limit is that of the class again."


async def note(
    connection: Connection, user: User, action: str, target: str, chosen: dict[str, Any] | None, count: int | None
) -> int:
    """Returns the id of the row. chosen: the filter, or what else was given. count: None: not known yet, or no jobs."""
    query = """INSERT INTO cluster.audit (who, via, action, target, filter, count) VALUES (%s, %s, %s, %s, %s, %s) RETURNING id"""
    values = [user.name, VIA, action, target, None if chosen is None else Jsonb(chosen), count]
    row = await (await connection.execute(query, values)).fetchone()
    assert row is not None
    number: int = row["id"]
    return number


async def audit_page(connection: Connection, before: int | None, size: int) -> list[dict[str, Any]]:
    """Newest first, one more than asked for if there is one."""
    query = "SELECT id, at, who, via, action, target, filter, count FROM cluster.audit WHERE id < %s ORDER BY id DESC LIMIT %s"
    return await (await connection.execute(query, [before or 2**63 - 1, size + 1])).fetchall()
