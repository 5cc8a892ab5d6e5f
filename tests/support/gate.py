"""Backends that stop between the snapshot of a statement and its locks, for as long as a test likes.

The statement is not changed: a row-level-security policy, which holds for a role that does not own the table, waits for an advisory
lock when the first row is scanned. Others run meanwhile, as superusers, for whom there are no policies.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

LOCK = 4711
"""Held exclusively while the gate is closed."""
_GATE = """
CREATE FUNCTION gate() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(4711);
    RETURN true;
END $$
"""
_WAITING = (
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND pid = %s AND NOT granted)"
)


class Stopped:
    """A statement that stands at the gate, or is done if there was no row to scan."""

    def __init__(self, keeper: psycopg.Connection[Any], answer: Future[list[tuple[Any, ...]]]) -> None:
        self._keeper = keeper
        self._answer = answer

    def end(self) -> list[tuple[Any, ...]]:
        """Opens the gate; what the statement returns, or a tuple without columns for each row that it has hit."""
        self._keeper.execute("SELECT pg_advisory_unlock_all()")
        return self._answer.result(timeout=20)


class GatedSession:
    """A session of a role that may do what a node may, on tables that have the gate."""

    def __init__(self, url: str, tables: list[str]) -> None:
        self.role = f"gated_{uuid4().hex[:12]}"
        self._keeper = psycopg.connect(url, autocommit=True)
        self._thread = ThreadPoolExecutor(1)
        role = sql.Identifier(self.role)
        if self._keeper.execute("SELECT to_regproc('gate')").fetchone() == (None,):
            self._keeper.execute(_GATE)
        self._keeper.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        for schema in ("cluster", "public"):
            schema_name = sql.Identifier(schema)
            self._keeper.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema_name, role))
            self._keeper.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}").format(schema_name, role))
        for table in tables:
            self._keeper.execute(sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(sql.Identifier(table)))
            self._keeper.execute(sql.SQL("CREATE POLICY gate ON {} USING (gate())").format(sql.Identifier(table)))
        self.url = psycopg.conninfo.make_conninfo(url, user=self.role)
        self._gated = psycopg.connect(self.url, autocommit=True)

    def start(self, statement: bytes, parameters: dict[str, Any]) -> Stopped:
        """Returns when it stands at the gate."""
        self.shut()
        answer = self._thread.submit(self._run, statement, parameters)
        while not answer.done() and not self.has_stopped(self._gated.info.backend_pid):
            time.sleep(0.001)
        return Stopped(self._keeper, answer)

    def shut(self) -> None:
        self._keeper.execute("SELECT pg_advisory_lock(%s)", [LOCK])

    def has_stopped(self, pid: int) -> bool:
        """The server's process stands at the gate."""
        return self._keeper.execute(_WAITING, [LOCK, pid]).fetchone() == (True,)

    def close(self) -> None:
        self._keeper.execute("SELECT pg_advisory_unlock_all()")
        self._thread.shutdown()
        self._gated.close()
        role = sql.Identifier(self.role)
        self._keeper.execute(sql.SQL("DROP OWNED BY {role}; DROP ROLE {role}").format(role=role))
        self._keeper.close()

    def _run(self, statement: bytes, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        cursor = self._gated.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else [()] * cursor.rowcount
