"""A connection that is made anew when it is lost. Each has one owner, which never shares it.

Every use has a local deadline: no setting of the network notices a server that is merely stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cluster.coordinator import pipeline
from cluster.coordinator.causes import Cause, brief, cause_of

KEEPALIVE = {
    # A silent cut is noticed within 6 s, but only with both keepalives (idle) and tcp_user_timeout (unacknowledged data).
    "keepalives_idle": "3", "keepalives_interval": "1", "keepalives_count": "3",
    "tcp_user_timeout": "6000", "connect_timeout": "5",
}  # fmt: skip

SETTINGS = {
    "statement_timeout": "0", "idle_session_timeout": "0", "idle_in_transaction_session_timeout": "15s",
    "default_transaction_read_only": "off", "default_transaction_isolation": "read committed",
}  # fmt: skip
"""Of each session, whatever role and database say; behind a pooler they are checked at the start. Our deadlines end what hangs."""

Setup = Callable[[AsyncConnection[Any]], Awaitable[None]]


class TransientDatabaseError(Exception):
    """The session is lost, or can't be had: try again after a pause. The statement may or may not have taken effect.

    refused: the server's host answered that no server is there, or the server that it takes no connections.
    silent: no answer came in time; the server may still hold the session.
    """

    def __init__(self, message: str, *, refused: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        self.silent = silent


class Session:
    """One connection in autocommit. Uses queue up: one at a time has it.

    listening: called when something arrives on the idle connection, and when it turns out to be lost.
    read_url: of the server; asked at each connect, since passwords change.
    sign_of_life: others take its end for this node's, so when it falls silent it is kept on the server until `let_go`.
    """

    def __init__(
        self,
        read_url: Callable[[], str],
        name: str,
        *,
        setup: Setup | None = None,
        listening: Callable[[AsyncConnection[Any] | None], None] | None = None,
        sign_of_life: bool = False,
    ) -> None:
        self.pooled = False
        """A pooler sits between: the session's state is not ours, so no prepared statements, settings, LISTEN or locks."""
        self.alone = False
        """Every session before this one has ended on the server: what they sent has been committed or never will be."""
        self._read_url = read_url
        self._name = name
        self._setup = setup
        self._listening = listening
        self._sign_of_life = sign_of_life
        self._connection: AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()
        self._reader: int | None = None
        self._silent = False
        self._kept: list[socket.socket] = []
        self._patience: asyncio.TimerHandle | None = None
        self._backends: list[tuple[int, datetime]] = []
        """Process id and start of the server's processes for this session and for those before that may not have ended."""

    @contextlib.asynccontextmanager
    async def use(self, deadline: float = 10.0) -> AsyncIterator[AsyncConnection[Any]]:
        """The connection, for at most `deadline` seconds without an answer from a pipeline. TransientDatabaseError: the session is
        lost; psycopg.Error: what is wrong with a statement is its owner's, see `causes`; the session goes on."""
        async with self._turn:
            self._stop_listening()
            try:
                async with self._guarded(deadline) as connection:
                    yield connection
            finally:
                self._listen_when_idle()

    @contextlib.asynccontextmanager
    async def _guarded(self, deadline: float) -> AsyncIterator[AsyncConnection[Any]]:
        started = time.monotonic()
        try:
            if (connection := self.connected) is None:
                async with asyncio.timeout(deadline):
                    connection = await self._connect()
            # Cancelling would first ask the server to cancel, and wait for its answer: hang up instead.
            self._lose_patience_at(started + deadline, connection, deadline)
            try:
                yield connection
            finally:
                if self._patience is not None:
                    self._patience.cancel()
        except TimeoutError as error:
            await self.close()
            raise TransientDatabaseError(f"no connection to Postgres within {deadline:g} s", silent=True) from error
        except psycopg.Error as error:
            cause = cause_of(error, alive=self.connected is not None)
            if cause not in {Cause.LOST, Cause.STALE_PLAN}:
                await self._roll_back()
                raise
            await self.close()
            silent, self._silent = self._silent, False
            raise TransientDatabaseError(brief(error), refused=_refused(error), silent=silent) from error
        except asyncio.CancelledError:
            await self.close()  # cut in the middle of a statement: its outcome is unknown, so is the connection's state
            raise

    async def close(self) -> None:
        """The session is over; a silent one is kept on the server until `let_go`."""
        self._stop_listening()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    @property
    def connected(self) -> AsyncConnection[Any] | None:
        """The open connection; None: there is none at the moment."""
        connection = self._connection
        return None if connection is None or connection.closed else connection

    @property
    def pid(self) -> int | None:
        """Of the server's process for this session. None: not connected, or it changes behind a pooler."""
        connection = self.connected
        return None if connection is None or self.pooled else connection.info.backend_pid

    def _parameters(self) -> dict[str, Any]:
        """Of the connection; what the URL says goes before our own."""
        return {**KEEPALIVE, "application_name": f"jobcluster {self._name}", **conninfo_to_dict(self._read_url())}

    async def _connect(self) -> AsyncConnection[Any]:
        connection = await AsyncConnection.connect(
            make_conninfo("", **self._parameters()),
            autocommit=True,
            prepare_threshold=None,
            client_encoding="utf-8",
        )
        try:
            return await self._prepared(connection)
        except BaseException:
            await connection.close()  # half of its settings are worse than none
            raise

    async def _prepared(self, connection: AsyncConnection[Any]) -> AsyncConnection[Any]:
        pid, started = await _backend(connection)
        self.pooled = pid != connection.info.backend_pid
        if not self.pooled:
            await _set_up(connection)
            connection.prepare_threshold = 0
            connection.prepared_max = None  # as many as there are job types: evicting one would cost more
            if not self._sign_of_life:
                await self._end_predecessors(connection)
                self._backends.append((pid, started))
        if self._setup is not None:
            await self._setup(connection)
        self._connection = connection
        return connection

    async def _end_predecessors(self, connection: AsyncConnection[Any]) -> None:
        """What a lost session left on the server would keep its locks, and may still commit."""
        try:
            self._backends = [backend for backend in self._backends if not await _end_backend(connection, *backend)]
        except errors.InsufficientPrivilege:
            await connection.rollback()  # another role's: its own timeouts end it
        self.alone = not self._backends

    async def _roll_back(self) -> None:
        """After an error that is not the session's."""
        connection = self.connected
        if connection is not None and connection.info.transaction_status != pq.TransactionStatus.IDLE:
            try:
                await connection.rollback()
            except psycopg.Error:
                await self.close()

    # --- silence ---

    def _lose_patience_at(self, until: float, connection: AsyncConnection[Any], deadline: float) -> None:
        """Many slow answers are no silence."""
        until = max(until, pipeline.answered_at(connection) + deadline)
        left = until - time.monotonic()
        loop = asyncio.get_running_loop()
        if left > 0:
            self._patience = loop.call_later(left, self._lose_patience_at, until, connection, deadline)
        else:
            self._hang_up(connection)

    def _hang_up(self, connection: AsyncConnection[Any]) -> None:
        """Ends the wait for an answer that does not come.

        Closing a session that is a sign of life would free its lock for a rescuer to see, although this node lives: only the
        reading side is shut, without a word to the server. Any other session ends, and with it what it holds.
        """
        self._silent = True
        with contextlib.suppress(psycopg.Error, OSError):
            ours = socket.socket(fileno=os.dup(connection.fileno()))
            if self._sign_of_life:
                ours.shutdown(socket.SHUT_RD)
                self._kept.append(ours)
            else:
                ours.shutdown(socket.SHUT_RDWR)
                ours.close()

    def let_go(self) -> None:
        """Closes the sockets of sessions that fell silent: there is a new one that says this node lives."""
        for kept in self._kept:
            kept.close()
        self._kept.clear()

    # --- between uses ---

    def _listen_when_idle(self) -> None:
        """What arrives on an idle connection lies on a socket that nobody reads."""
        connection = self.connected
        if self._listening is not None and connection is not None and self._reader is None:
            self._reader = connection.fileno()
            asyncio.get_running_loop().add_reader(self._reader, self._readable)

    def _stop_listening(self) -> None:
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader)
            self._reader = None

    def _readable(self) -> None:
        connection = self.connected
        assert self._listening is not None
        try:
            if connection is None:
                raise psycopg.OperationalError("the connection is closed")
            connection.pgconn.consume_input()
            if connection.pgconn.status != pq.ConnStatus.OK:
                raise psycopg.OperationalError("the connection is lost")
        except psycopg.Error:
            self._stop_listening()
            if connection is not None:
                connection.pgconn.finish()
            self._listening(None)
        else:
            self._listening(connection)


async def notice_silence(connection: AsyncConnection[Any]) -> None:
    """Lets the server notice a silent cut within about 10 s; without this, in hours.

    Until then it keeps what the session holds: rows, its node's row, a limit's mutex, the watch.
    """
    for name, value in (
        ("tcp_keepalives_idle", 5),
        ("tcp_keepalives_interval", 2),
        ("tcp_keepalives_count", 3),
        ("tcp_user_timeout", 10_000),
    ):
        await connection.execute(f"SET {name} = {value}")


async def _set_up(connection: AsyncConnection[Any]) -> None:
    """Row security that would hide rows from this role is an error of the statement, never rows that are silently not there."""
    settings = SETTINGS | {"row_security": "off"}
    if connection.info.server_version >= 170000:
        settings["transaction_timeout"] = "15s"  # longer than any round trip may take
    await connection.execute(
        "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)",
        [list(settings), list(settings.values())],
    )


async def _backend(connection: AsyncConnection[Any]) -> tuple[int, datetime]:
    cursor = await connection.execute(
        "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()", binary=True
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


async def _end_backend(connection: AsyncConnection[Any], pid: int, started: datetime) -> bool:
    """Whether it has ended, and so quickly. A process id may be another's by now, a start as well may not."""
    cursor = await connection.execute(
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE (pid, backend_start) = (%s, %s)",
        [pid, started],
    )
    return await cursor.fetchone() in {None, (True,)}


def _refused(error: psycopg.Error) -> bool:
    """The error says that no server is running there, in so many words."""
    return (
        isinstance(error, errors.CannotConnectNow) or "Connection refused" in str(error) or "No such file" in str(error)
    )
