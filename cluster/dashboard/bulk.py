"""Actions on all jobs that pass a filter: counted first, then done in the background in batches, shown and stoppable meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import LiteralString

import psycopg

from cluster.dashboard import actions
from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection, Database
from cluster.dashboard.job_tables import Column, JobTable
from cluster.dashboard.lists import Filter
from cluster.selection import EACH, WAITING, Selection, in_words
from cluster.selection import JobTable as Rows

KEPT = 50
"""Runs that are remembered; a process that ends forgets them, and its audit says how many jobs were changed."""
_EACH: Mapping[str, LiteralString] = {
    **EACH,
    "now": "UPDATE {table} AS job SET run_at = now() FROM picked WHERE job.id = picked.id RETURNING 'due'",
    "again": "INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE id IN (SELECT id FROM picked)"
    " RETURNING 'inserted'",
    "move": "UPDATE {table} AS job SET queue = coalesce(%(to_queue)s, queue), updated_at = now(),"
    " priority = coalesce(%(to_priority)s::smallint, priority) FROM picked WHERE job.id = picked.id RETURNING 'moved'",
}
POSSIBLE = {name: statuses for name, statuses in actions.POSSIBLE.items() if name in _EACH} | {"move": WAITING}

_COUNT = "SELECT status::text AS status, count(*) AS jobs FROM {table} WHERE {where} GROUP BY status"


@dataclass
class Run:
    """One that goes on or has ended. columns: those that new jobs have from others, in SQL. error: why it ended before its time."""

    number: str
    table: JobTable
    action: str
    chosen: Filter
    total: int
    columns: str
    given: Mapping[str, str | None] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    is_over: bool = False
    is_stopped: bool = False
    error: str = ""

    @property
    def words(self) -> str:
        return in_words(+self.done) or "nothing yet"


async def count(connection: Connection, table: JobTable, selection: Selection) -> Counter[str]:
    """By status. QueryCanceled: they are too many to be counted in the time that a page has."""
    query = _COUNT.replace("{table}", table.sql_name.replace("%", "%%")).replace("{where}", selection.where())
    rows = await (await connection.execute(query.encode(), selection.values())).fetchall()
    return Counter({row["status"]: row["jobs"] for row in rows})


class Runs:
    """All of this process, at most KEPT."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, number: str) -> Run | None:
        return self._runs.get(number)

    async def start(
        self, user: User, table: JobTable, columns: list[Column], action: str, chosen: Filter, total: int,
        given: Mapping[str, str | None],
    ) -> Run:  # fmt: skip
        """The audit has it before anything is changed. given: what the action needs to know."""
        told = chosen.told | {name: value for name, value in given.items() if value}
        async with self._database.writing() as connection:
            audit = await actions.note(connection, user, f"{action} all", table.sql_name, told, None)
        run = Run(
            secrets.token_hex(8), table, action, chosen, total, actions.copied(columns).as_string(), given
        )  # fmt: skip
        self._runs[run.number] = run
        for old in [number for number, each in self._runs.items() if each.is_over][: max(0, len(self._runs) - KEPT)]:
            del self._runs[old]
        task = asyncio.create_task(self._go(run, audit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def stop(self) -> None:
        """Of the process: each run ends after its batch."""
        for run in self._runs.values():
            run.is_stopped = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _go(self, run: Run, audit: int) -> None:
        def tell(done: Counter[str]) -> bool:
            run.done = +done
            return not run.is_stopped

        try:
            await asyncio.to_thread(_change, self._database.url, run, tell)
            await self._note_end(run, audit)
        except psycopg.Error as error:
            run.error = (error.diag.message_primary or str(error)).strip()
            with contextlib.suppress(psycopg.Error):  # Postgres may be away: then the audit lacks the number
                await self._note_end(run, audit)
        finally:
            run.is_over = True

    async def _note_end(self, run: Run, audit: int) -> None:
        changed = run.done.total() - run.done["busy"]
        async with self._database.writing() as connection:
            await connection.execute("UPDATE cluster.audit SET count = %s WHERE id = %s", [changed, audit])


def _change(url: Callable[[], str], run: Run, tell: Callable[[Counter[str]], bool]) -> None:
    """In a thread, on a connection of its own: a batch may take longer than a page may."""
    with psycopg.connect(
        url(), autocommit=True, prepare_threshold=None, client_encoding="utf-8", application_name="cluster dashboard"
    ) as connection:
        selection = run.chosen.selection(run.table, POSSIBLE[run.action])
        selection = replace(selection, more_values={**selection.more_values, **run.given})
        each = _EACH[run.action].replace("{columns}", run.columns.replace("%", "%%"))
        Rows(run.table.oid, run.table.sql_name).change(connection, selection, each, tell)
