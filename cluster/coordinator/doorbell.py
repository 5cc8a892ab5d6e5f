"""The doorbell: NOTIFY only when someone sleeps. Owns the listening connection and its session locks.

A coordinator that is about to sleep takes its tables' doorbells, looks once more, and only then sleeps: that is being on watch.
An insert notifies only when somebody is on watch; otherwise somebody is awake and looking. Producers hold the lock shared
until they commit, so nobody can go on watch past a row that is not visible yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, Notify

from cluster import events, locks, statements
from cluster.coordinator.session import Session, notice_silence

RINGS_CHANNEL, CANCEL_CHANNEL = "cluster_doorbell", "cluster_cancel"
OFTEN = 800.0
"""Rings a second beyond which being on watch costs producers more than looking costs this node."""
OTHERS_FOR = 1.0
"""Seconds for which another is taken to be still on watch: less than any sleep, after which all is tried and looked at anew."""
RINGING = 0.25
"""Seconds after which rings no longer count as of lately."""
_NOTIFY = "SELECT pg_notify(%s, %s)"
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
        self._session = Session(url, "doorbell", setup=self._listen, listening=self._arrived)
        self._ring = ring
        self._cancel = cancel
        self._watched: set[int] = set()
        self._others: dict[int, float] = {}
        """Tables for which another was on watch, with the CLOCK_MONOTONIC seconds when it was."""
        self._silent: set[int] = set()
        """Tables on watch that have not rung since the last look at them went out."""
        self._asked: set[int] = set()
        """The same, of a look that is under way."""
        self._left: set[int] = set()
        """Tables whose watch this node left without a word, and nobody is known to have it: others sleep because of this one."""
        self._freed: set[int] = set()
        """Tables under whose limit this node has freed room, which not even who is on watch knows of."""
        self._rung: set[int] = set()
        self._changed = False
        self._connections = 0
        self._rings = 0.0
        self._last_rings: dict[int, float] = {}
        """CLOCK_MONOTONIC seconds, by table."""
        self._rung_at = 0.0

    @property
    def watching(self) -> bool:
        return bool(self._watched)

    def is_watched(self, tables: Iterable[int]) -> bool:
        """By this node, or by another when last tried."""
        return self._watched.union(self._watched_by_others()).issuperset(tables)

    def _watched_by_others(self) -> set[int]:
        now = time.monotonic()
        return {table for table, at in self._others.items() if now < at + OTHERS_FOR}

    @property
    def often_rung(self) -> bool:
        """More than OFTEN a second, lately."""
        return self._rings_lately() > OFTEN * RINGING

    # --- where a look would find what the last one found ---

    def looking(self, tables: set[int]) -> None:
        """A look at these goes out."""
        self._silent -= tables
        self._asked = self._watched & tables

    def looked(self) -> None:
        """It has been answered."""
        self._silent |= self._asked

    @property
    def silent(self) -> set[int]:
        """Tables where nothing has come since the last look, or whatever has is for another node to see."""
        return self._silent | self._watched_by_others()

    def take_rung(self) -> set[int]:
        """Oids of the tables whose doorbell rang since the last call."""
        rung, self._rung = self._rung, set()
        return rung

    def take_changed(self) -> bool:
        """Whether operators have changed a limit or a pause since the last call."""
        changed, self._changed = self._changed, False
        return changed

    @property
    def pid(self) -> int | None:
        """Of the backend; None: not connected."""
        return self._session.pid

    async def watch(self, tables: list[int]) -> Watch:
        """Tries to be on watch for all of these tables, given by oid."""
        if self._session.connected is not None and (self._session.pooled or self.is_watched(tables)):
            return Watch(new=False, producers=False)
        async with self._session.use() as connection:
            if self._session.pooled:
                return Watch(new=False, producers=False)
            missing = set(tables) - self._watched - self._watched_by_others()  # none is kept across a reconnection
            cursor = await connection.execute(
                statements.statement("watch_doorbell"), {"class": locks.DOORBELL, "tables": list(missing)}
            )
            answers = dict(await cursor.fetchall())
            new = {table for table, answer in answers.items() if answer == "watching"}
            producers = {table for table, answer in answers.items() if answer == "producers"}
            self._watched |= new
            now = time.monotonic()
            self._others |= {table: now for table, answer in answers.items() if answer == "watched"}
            self._left -= missing - producers  # only a use of the session adds to these, so none has come meanwhile
        return Watch(bool(new), bool(producers))

    async def leave(self) -> None:
        """Goes off watch for what rings: from now on this node must look there by itself, or have nobody to look for."""
        if self._ringing():
            async with self._session.use() as connection:
                ringing = self._ringing()
                self._left |= ringing
                await self._release(connection, ringing)

    def _ringing(self) -> set[int]:
        now = time.monotonic()
        return {table for table in self._watched if now < self._last_rings.get(table, -RINGING) + RINGING}

    async def hand_over(self, tables: set[int] | None = None) -> None:
        """Goes off watch for tables (None: all) and, if others may sleep because of this node, wakes them: it has no room for what
        waits there.

        It leaves before it calls: who is called must be able to go on watch.
        """
        if not self._relied_on(tables):
            return
        async with self._session.use() as connection:
            relied_on = self._relied_on(tables)
            self._freed -= relied_on
            self._left |= relied_on
            await self._release(connection, self._watched & relied_on)
            if not self._session.pooled:
                await connection.execute(_NOTIFY, [RINGS_CHANNEL, _CALL])
            self._left -= relied_on

    def _relied_on(self, tables: set[int] | None) -> set[int]:
        found = self._watched | self._left | self._freed
        return found if tables is None else found & tables

    async def _release(self, connection: AsyncConnection[Any], tables: set[int]) -> None:
        self._watched = self._watched - tables
        self._silent -= tables
        self._asked -= tables
        if tables:
            await connection.execute(
                statements.statement("leave_doorbell"), {"class": locks.DOORBELL, "tables": list(tables)}
            )

    async def call(self) -> None:
        """Wakes the other coordinators, on watch or not."""
        async with self._session.use() as connection:
            if not self._session.pooled:
                await connection.execute(_NOTIFY, [RINGS_CHANNEL, _CALL])

    def limit_freed(self, table: int) -> None:
        """This node has freed room under a table's limit: it must look there, and call others for what it does not use."""
        self._freed.add(table)
        self._silent.discard(table)
        self._asked.discard(table)
        self._others.pop(table, None)

    async def connect(self) -> None:
        """Listens; a no-op while connected."""
        if self._session.connected is None:
            async with self._session.use():
                pass

    async def close(self) -> None:
        await self._session.close()

    # --- the connection ---

    async def _listen(self, connection: AsyncConnection[Any]) -> None:
        if self._session.pooled:
            if not self._connections:
                events.without_direct_connection(
                    "no LISTEN and no watch through a pooler: this node looks by the clock"
                )
            self._connections = 1
            return
        self._lose_watch()  # session locks went with the old connection
        self._connections += 1
        if self._connections > 1:
            events.listener_reconnected()
        self._ring()  # what came before this is not heard
        await notice_silence(connection)
        connection.add_notify_handler(self._notified)
        await connection.execute(f"LISTEN {RINGS_CHANNEL}")
        await connection.execute(f"LISTEN {CANCEL_CHANNEL}")

    def _arrived(self, connection: AsyncConnection[Any] | None) -> None:
        if connection is None:
            self._lose_watch()
            self._ring()
            return
        while (notify := connection.pgconn.notifies()) is not None:
            self._received(notify.relname.decode(), notify.extra.decode(), notify.be_pid)

    def _lose_watch(self) -> None:
        self._left |= self._watched
        self._watched.clear()
        self._forget_silence()

    def _forget_silence(self) -> None:
        self._silent.clear()
        self._asked.clear()
        self._others.clear()

    def _notified(self, notify: Notify) -> None:
        self._received(notify.channel, notify.payload, notify.pid)

    def _received(self, channel: str, payload: str, sender: int) -> None:
        """Anybody may notify on these channels, so a payload may be anything."""
        if payload == _CALL and sender == self.pid:
            return
        numbers = [int(part) for part in payload.split() if part.isdecimal()]
        if channel == CANCEL_CHANNEL:
            if len(numbers) == 2:
                self._cancel(*numbers)
        elif payload in {"", _CALL} or not self._watched.isdisjoint(numbers):
            now = time.monotonic()
            self._rings = self._rings_lately() + 1
            self._rung_at = now
            rung = self._watched.intersection(numbers)
            self._rung |= rung
            self._last_rings |= dict.fromkeys(rung, now)
            self._silent.difference_update(numbers)
            self._asked.difference_update(numbers)
            if payload in {"", _CALL}:
                self._forget_silence()
            self._changed = self._changed or payload == ""
            events.rang()
            self._ring()

    def _rings_lately(self) -> float:
        """Of the last moment, fading out."""
        return self._rings * max(0.0, 1 - (time.monotonic() - self._rung_at) / RINGING)
