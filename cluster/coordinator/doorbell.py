"""The doorbell: NOTIFY only when someone sleeps. Owns the listening connection and its session locks.

A coordinator that is about to sleep takes its tables' doorbells, looks once more, and only then sleeps: that is being on watch.
An insert notifies only when somebody is on watch; otherwise somebody is awake and looking. Producers hold the lock shared
until they commit, so nobody can go on watch past a row that is not visible yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection, Notify

from cluster import events, locks, statements
from cluster.coordinator.session import Session

RINGS_CHANNEL, CANCEL_CHANNEL = "cluster_doorbell", "cluster_cancel"
OFTEN = 50.0
"""Rings a second beyond which being on watch costs producers more than looking costs this node."""
_CALL = "+"
"""In front of a ring from coordinator to coordinator: for everybody, on watch or not."""


@dataclass(frozen=True)
class Watch:
    """What came of going on watch. new: tables to look at once more; producers: some insert is about to commit."""

    new: bool
    producers: bool


class Doorbell:
    """Rings wake the claimer: `ring` is called for tables on watch, `cancel` with a table's oid and a job's id."""

    def __init__(self, url: str, ring: Callable[[], None], cancel: Callable[[int, int], None]) -> None:
        self._session = Session(url, "doorbell", prepare=True, setup=self._listen)
        self._ring = ring
        self._cancel = cancel
        self._watched: set[int] = set()
        self._busy = asyncio.Lock()
        self._reader: int | None = None
        self._connections = 0
        self._rings = 0.0
        self._rung_at = 0.0

    @property
    def watching(self) -> bool:
        return bool(self._watched)

    @property
    def often_rung(self) -> bool:
        """More than OFTEN a second, lately."""
        return self._rings > OFTEN / 4

    @property
    def pid(self) -> int | None:
        """Of the backend; None: not connected."""
        connection = self._session.connected
        return connection.info.backend_pid if connection is not None else None

    async def watch(self, tables: list[int]) -> Watch:
        """Tries to be on watch for all of these tables, given by oid."""
        missing = [table for table in tables if table not in self._watched]
        if not missing and self._session.connected is not None:
            return Watch(new=False, producers=False)
        async with self._statement() as connection:
            missing = [table for table in tables if table not in self._watched]  # none is kept across a reconnection
            cursor = await connection.execute(
                statements.statement("watch_doorbell"), {"class": locks.DOORBELL, "tables": missing}
            )
            answers = dict(await cursor.fetchall())
        new = {table for table, answer in answers.items() if answer == "watching"}
        self._watched |= new
        return Watch(bool(new), "producers" in answers.values())

    async def leave(self) -> None:
        """Goes off watch: from now on this node must look by itself, or have nobody to look for."""
        if self._watched:
            tables, self._watched = list(self._watched), set()
            async with self._statement() as connection:
                await connection.execute(
                    statements.statement("leave_doorbell"), {"class": locks.DOORBELL, "tables": tables}
                )

    async def hand_over(self) -> None:
        """Goes off watch and wakes the other coordinators: there is work that this node has no room for."""
        if self._watched:
            await self.leave()
            async with self._statement() as connection:
                await connection.execute("SELECT pg_notify(%s, %s)", [RINGS_CHANNEL, _CALL])

    async def connect(self) -> None:
        """Listens; a no-op while connected."""
        if self._session.connected is None:
            async with self._statement():
                pass

    async def close(self) -> None:
        self._stop_reading()
        await self._session.close()

    # --- the connection ---

    @contextlib.asynccontextmanager
    async def _statement(self) -> AsyncIterator[AsyncConnection[Any]]:
        """The connection for one statement: the reader steps aside, since the driver reads the socket meanwhile."""
        async with self._busy:
            self._stop_reading()
            try:
                async with self._session.use() as connection:
                    yield connection
            finally:
                self._read_when_idle()

    async def _listen(self, connection: AsyncConnection[Any]) -> None:
        self._stop_reading()
        self._watched.clear()  # session locks went with the old connection
        self._connections += 1
        if self._connections > 1:
            events.listener_reconnected()
            self._ring()
        connection.add_notify_handler(self._notified)
        await connection.execute(f"LISTEN {RINGS_CHANNEL}")
        await connection.execute(f"LISTEN {CANCEL_CHANNEL}")

    def _read_when_idle(self) -> None:
        """Notifications arrive on a socket that nobody reads between statements."""
        connection = self._session.connected
        if connection is not None and self._reader is None:
            self._reader = connection.fileno()
            asyncio.get_running_loop().add_reader(self._reader, self._readable)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader)
            self._reader = None

    def _readable(self) -> None:
        connection = self._session.connected
        try:
            if connection is None:
                raise psycopg.OperationalError("the connection is closed")
            connection.pgconn.consume_input()
            while (notify := connection.pgconn.notifies()) is not None:
                self._received(notify.relname.decode(), notify.extra.decode())
        except psycopg.Error:
            self._stop_reading()
            self._watched.clear()
            if connection is not None:
                connection.pgconn.finish()
            self._ring()

    def _notified(self, notify: Notify) -> None:
        self._received(notify.channel, notify.payload)

    def _received(self, channel: str, payload: str) -> None:
        """Anybody may notify on these channels, so a payload may be anything."""
        numbers = [int(part) for part in payload.split() if part.isdecimal()]
        if channel == CANCEL_CHANNEL:
            if len(numbers) == 2:
                self._cancel(*numbers)
        elif payload in {"", _CALL} or not self._watched.isdisjoint(numbers):
            now = time.monotonic()
            self._rings = self._rings * max(0.0, 1 - 4 * (now - self._rung_at)) + 1  # over the last quarter of a second
            self._rung_at = now
            events.rang()
            self._ring()
