"""Whom a statement waits for, said while it waits: a thread with a connection of its own asks Postgres."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo

Say = Callable[[str], None]
"""Takes a sentence for the person who waits."""
INTERVAL = 0.5
"""Seconds between two questions; a wait that is shorter is not worth a line."""


def quiet(_: str) -> None:
    """Nobody reads it."""


class Blockers:
    """last: whom the connection waited for when it was last asked; "": for nobody so far."""

    def __init__(self, connection: Connection[Any], say: Say) -> None:
        self._waiter = connection.info.backend_pid
        self._conninfo = make_conninfo(connection.info.dsn, password=connection.info.password or None)
        self._say = say
        self._ended = threading.Event()
        self.last = ""

    def watch(self) -> None:
        """Until `end`. A server that has no connection left for this keeps the names to itself."""
        with suppress(psycopg.OperationalError):
            if self._ended.wait(INTERVAL):
                return
            with psycopg.connect(self._conninfo, autocommit=True, connect_timeout=5) as connection:
                while not self._ended.wait(INTERVAL):
                    self._ask(connection)

    def end(self) -> None:
        """Lets `watch` return."""
        self._ended.set()

    def _ask(self, connection: Connection[Any]) -> None:
        rows = connection.execute(_BLOCKERS, [self._waiter]).fetchall()
        if not rows:
            return
        names = "; ".join(_described(*row) for row in rows)
        if names != self.last:
            self.last = names
            self._say(f"waiting for {names}")


_SESSION = "a.pid, coalesce(a.usename::text, '?'), coalesce(a.state, '?'), left(coalesce(a.query, '?'), 80)"
_BLOCKERS = f"""
SELECT {_SESSION} FROM unnest(pg_blocking_pids(%s)) AS b (pid) JOIN pg_stat_activity a USING (pid) ORDER BY 1
"""  # noqa: S608 - a constant
_HOLDER = f"""
SELECT {_SESSION} FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid = %s::integer::oid AND l.objsubid = 2 AND l.granted AND l.pid <> pg_backend_pid()
"""  # noqa: S608 - a constant


def _described(pid: int, role: str, state: str, query: str) -> str:
    return f"server process {pid} of role {role} ({state}: {' '.join(query.split())})"


@contextmanager
def naming_blockers(connection: Connection[Any], say: Say) -> Iterator[Blockers]:
    """While the block runs, `say` is told whom the connection waits for."""
    blockers = Blockers(connection, say)
    thread = threading.Thread(target=blockers.watch, daemon=True)
    thread.start()
    try:
        yield blockers
    finally:
        blockers.end()
        thread.join()


def holder_of_lock(connection: Connection[Any], lock_class: int) -> str | None:
    """Who holds an advisory lock of this class. None: nobody any more."""
    row = connection.execute(_HOLDER, [lock_class]).fetchone()
    return None if row is None else _described(*row)
