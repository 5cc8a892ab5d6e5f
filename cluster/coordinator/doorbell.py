"""The doorbell: NOTIFY only when someone sleeps. Owns the listening connection and its session locks.

A coordinator that is about to sleep takes its tables' doorbells, looks once more, and only then sleeps: that is being on watch.
An insert notifies only when somebody is on watch; otherwise somebody is awake and looking. Producers hold the lock shared
until they commit, so nobody can go on watch past a row that is not visible yet.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.pq import PGnotify

from cluster import events, locks, statements
from cluster.coordinator.backlog import RINGING, Backlog
from cluster.coordinator.session import Session, notice_silence

RINGS_CHANNEL, CANCEL_CHANNEL, SCHEDULES_CHANNEL = "cluster_doorbell", "cluster_cancel", "cluster_schedules"
OFTEN = 800.0
"""Rings a second beyond which being on watch costs producers more than looking costs this node."""
EVERYWHERE_INTERVAL = 0.01
"""Seconds between two looks at everything because of rings that name no table: anybody may send any number."""
_NOTIFY = "SELECT pg_notify(%s, %s)"
_CALL = "+"
"""In front of a ring from coordinator to coordinator: for everybody, on watch or not."""


class Watch(NamedTuple):
    """What came of going on watch. new: tables to look at once more; producers: some insert is about to commit."""

    new: bool
    producers: bool


class Doorbell:
    """Rings wake the claimer: `ring` is called for tables on watch, `cancel` with a table's oid and a job's id, `schedules` when
    one of them is due earlier than was known, `changed` when operators have changed something.

    Whether a table is watched, and by whom, its backlog knows; nobody but this writes that.
    """

    def __init__(
        self,
        read_url: Callable[[], str],
        backlogs: Sequence[Backlog],
        ring: Callable[[], None],
        cancel: Callable[[int, int], None],
        schedules: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._session = Session(read_url, "doorbell", setup=self._listen, listening=self._arrived)
        self._backlogs = backlogs
        self._ring = ring
        self._cancel = cancel
        self._schedules = schedules
        self._operators_changed = changed
        self._changed = False
        self._connections = 0
        self._rings = 0.0
        self._rung_at = 0.0
        self._doubted_at = -math.inf
        self._doubts: asyncio.TimerHandle | None = None
        """Will look everywhere for rings that came too soon after others."""

    @property
    def often_rung(self) -> bool:
        """More than OFTEN a second, lately."""
        return self._rings_lately() > OFTEN * RINGING

    @property
    def is_deaf(self) -> bool:
        """Nothing is heard: there is no connection, or a pooler sits between."""
        return self._session.pooled or self._session.connected is None

    def take_changed(self) -> bool:
        """Whether operators have changed a limit or a pause since the last call."""
        changed, self._changed = self._changed, False
        return changed

    @property
    def pid(self) -> int | None:
        """Of the backend; None: not connected."""
        return self._session.pid

    async def watch(self, backlogs: Sequence[Backlog]) -> Watch:
        """Tries to be on watch for all of these tables."""
        if self._session.connected is not None and (
            self._session.pooled or all(backlog.is_watched() for backlog in backlogs)
        ):
            return Watch(new=False, producers=False)
        async with self._session.use() as connection:
            if self._session.pooled:
                return Watch(new=False, producers=False)
            missing = {
                b.table: b for b in backlogs if b.table and not b.is_watched()
            }  # none is kept across a reconnection
            cursor = await connection.execute(
                statements.statement("watch_doorbell"), {"class": locks.DOORBELL, "tables": list(missing)}
            )
            answers = dict(await cursor.fetchall())
            now = time.monotonic()
            for table, answer in answers.items():
                if answer == "watching":
                    missing[table].go_on_watch()
                elif answer == "watched":
                    missing[table].watched_elsewhere_at, missing[table].left = now, False
        return Watch("watching" in answers.values(), "producers" in answers.values())

    async def leave(self) -> None:
        """Goes off watch for what rings: from now on this node must look there by itself, or have nobody to look for."""
        if self._ringing():
            async with self._session.use() as connection:
                await self._release(connection, self._ringing())

    def _ringing(self) -> list[Backlog]:
        return [backlog for backlog in self._backlogs if backlog.watched and backlog.is_ringing]

    async def hand_over(self, backlogs: Sequence[Backlog] | None = None) -> None:
        """Goes off watch for tables (None: all) and, if others may sleep because of this node, wakes them: it has no room for what
        waits there.

        It leaves before it calls: who is called must be able to go on watch.
        """
        chosen = self._backlogs if backlogs is None else backlogs
        if not any(backlog.is_relied_on for backlog in chosen):
            return
        async with self._session.use() as connection:
            relied_on = [backlog for backlog in chosen if backlog.is_relied_on]
            await self._release(connection, [backlog for backlog in relied_on if backlog.watched])
            if not self._session.pooled:
                await connection.execute(_NOTIFY, [RINGS_CHANNEL, _CALL])
            for backlog in relied_on:
                backlog.told()

    async def _release(self, connection: AsyncConnection[Any], backlogs: Sequence[Backlog]) -> None:
        for backlog in backlogs:
            backlog.leave_watch()
        if backlogs:
            tables = [backlog.table for backlog in backlogs]
            await connection.execute(
                statements.statement("leave_doorbell"), {"class": locks.DOORBELL, "tables": tables}
            )

    async def call(self) -> None:
        """Wakes the other coordinators, on watch or not."""
        async with self._session.use() as connection:
            if not self._session.pooled:
                await connection.execute(_NOTIFY, [RINGS_CHANNEL, _CALL])

    async def connect(self) -> None:
        """Listens; a no-op while connected."""
        if self._session.connected is None:
            async with self._session.use():
                pass

    async def close(self) -> None:
        if self._doubts is not None:
            self._doubts.cancel()
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
        self._schedules()
        await notice_silence(connection)
        connection.pgconn.notify_handler = self._heard  # the driver's would fail for bytes that are no text
        await connection.execute(f"LISTEN {RINGS_CHANNEL}")
        await connection.execute(f"LISTEN {CANCEL_CHANNEL}")
        await connection.execute(f"LISTEN {SCHEDULES_CHANNEL}")

    def _arrived(self, connection: AsyncConnection[Any] | None) -> None:
        if connection is None:
            self._lose_watch()
            self._ring()
            return
        while (notify := connection.pgconn.notifies()) is not None:
            self._heard(notify)

    def _lose_watch(self) -> None:
        for backlog in self._backlogs:
            backlog.leave_watch()
        self._doubt()

    def _doubt(self) -> None:
        """Something may have come, anywhere, and nobody is known to be on watch elsewhere."""
        for backlog in self._backlogs:
            backlog.watched_elsewhere_at = -math.inf
            backlog.ring()

    def _heard(self, notify: PGnotify) -> None:
        self._received(_text(notify.relname), _text(notify.extra), notify.be_pid)

    def _received(self, channel: str, payload: str, sender: int) -> None:
        if payload == _CALL and sender == self.pid:
            return
        if channel == CANCEL_CHANNEL:
            numbers = parse_numbers(payload)
            if len(numbers) == 2:
                self._cancel(*numbers)
            return
        if channel == SCHEDULES_CHANNEL:
            self._schedules()
            return
        everywhere = payload in {"", _CALL}
        rung = [] if everywhere else [b for b in self._backlogs if b.watched and b.table in parse_numbers(payload)]
        if everywhere:
            if payload == "":
                self._changed = True
                self._operators_changed()
            if self._doubts is None:
                wait = self._doubted_at + EVERYWHERE_INTERVAL - time.monotonic()
                self._doubts = asyncio.get_running_loop().call_later(max(0.0, wait), self._rung_everywhere)
            return
        if not rung:
            return
        self._rings, self._rung_at = self._rings_lately() + 1, time.monotonic()
        for backlog in rung:
            backlog.rung()
        events.rang()
        self._ring()

    def _rung_everywhere(self) -> None:
        self._doubts, self._doubted_at = None, time.monotonic()
        self._doubt()
        events.rang()
        self._ring()

    def _rings_lately(self) -> float:
        """Of the last moment, fading out."""
        return self._rings * max(0.0, 1 - (time.monotonic() - self._rung_at) / RINGING)


def parse_numbers(payload: str) -> list[int]:
    """Anybody may notify, so a payload may be anything: of what is not one or two numbers as Postgres has them nothing is left."""
    if not _NUMBERS.fullmatch(payload):
        return []
    numbers = [int(part) for part in payload.split()]
    return numbers if max(numbers) < 2**63 else []


_NUMBERS = re.compile(r"[0-9]{1,19}( [0-9]{1,19})?")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
