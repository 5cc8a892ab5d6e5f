"""With every heartbeat: the rows that run under this node's id, held against what the node knows.

A claim or finish whose answer was lost may have committed, even later than one looks. Rows that nobody here knows go back; jobs
whose row is gone are stopped, and those whose cancellation was asked for. Where the question itself fails, nothing is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import psycopg
from psycopg import AsyncConnection

from cluster import events
from cluster.coordinator import pipeline
from cluster.coordinator.arrays import Instant
from cluster.coordinator.causes import WHY_HELD, Cause, brief, cause_of
from cluster.coordinator.claims import Claim
from cluster.coordinator.job_types import JobType, exists
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.refusal import NO_ROWS, ROWS_OWN, is_lost
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Hold, RowsAside, Troubles
from cluster.fingerprint import fingerprint

SHARE = 0.1
"""Of the time, that comparisons may take."""
UNKNOWN_AFTER = 15.0
"""Seconds since its claim after which a row that nobody here knows is handed back: longer than any round trip may take.

At once, when the claims' sessions before this one are known to have ended: then no claim can be under way.
"""
QUIET = 0.1
"""Seconds of rest after a comparison that somebody asked for: anybody can ask."""
MOST_TABLES = 50
"""Asked in one round trip."""

Key: TypeAlias = tuple[int, bytes]
"""A claim among those of its type: id and locked_at."""


class Holder(Protocol):
    """What the placement is to this."""

    def held(self, lease: Lease) -> list[Claim]: ...

    def cancel(self, job_type: JobType, job_id: int) -> bool: ...

    def stop_lost(self, claims: Iterable[Claim]) -> None: ...


class Row(NamedTuple):
    """As list_claims finds it. age: seconds since its claim."""

    id: int
    locked_at: Instant
    age: float
    cancelled: bool

    @property
    def key(self) -> Key:
        return self.id, self.locked_at.to_bytes(8, "big", signed=True)


class Reconciler:
    """`tick` is one comparison. unwritten: claims whose outcome the finisher still has; lease: the current one, None: none."""

    def __init__(
        self,
        session: Session,
        types: Sequence[JobType],
        troubles: Troubles,
        holder: Holder,
        lease: Callable[[], Lease | None],
        unwritten: Callable[[], Iterable[Claim]],
        interval: float,
    ) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._types = types
        self._holder = holder
        self._lease = lease
        self._unwritten = unwritten
        self._interval = interval
        self._holds = {job_type: Hold(troubles, job_type.name) for job_type in types}
        """Tables that can't be asked."""
        self._aside = {job_type: RowsAside(troubles, job_type.name, "release_refused") for job_type in types}
        """Rows that refuse to be given back."""
        self._asked_for: set[JobType] = set()
        """Types to look at before the next comparison is due."""
        self._next_at = 0.0
        self._took = 0.0
        """Seconds of the queries of one comparison: a held snapshot keeps the index entries of all that this node has run."""

    def look_at(self, job_type: JobType) -> None:
        """Somebody says that a job of this type is to be cancelled: its row must say so too."""
        self._asked_for.add(job_type)
        self.wakeup.set()

    async def tick(self) -> float | None:
        """Returns the seconds until the next comparison."""
        lease, self._took = self._lease(), 0.0
        asked_for, self._asked_for = self._asked_for, set()
        if lease is not None and asked_for and time.monotonic() < self._next_at:
            await self._compare_all(lease, list(asked_for), UNKNOWN_AFTER)
            await asyncio.sleep(QUIET)
        elif lease is not None:
            await self._compare_all(lease, self._types, UNKNOWN_AFTER)
            self._next_at = time.monotonic() + max(self._interval, self._took / SHARE)
        else:
            return self._interval
        return max(0.0, self._next_at - time.monotonic())

    async def release_unknown(self, lease: Lease) -> None:
        """The node ends, no claim can be under way any more: gives back all that runs under its id and that nobody here knows."""
        await self._compare_all(lease, self._types, 0.0)

    async def _compare_all(self, lease: Lease, types: Sequence[JobType], unknown_after: float) -> None:
        asked = [job_type for job_type in types if self._holds[job_type].is_over]
        for start in range(0, len(asked), MOST_TABLES):
            some = asked[start : start + MOST_TABLES]
            before, rows = await self._ask(some, lease)
            after = self._known(lease)
            for job_type in some:
                if (found := rows.get(job_type)) is not None:
                    known = before.get(job_type, {}) | after.get(job_type, {})
                    self._stop(job_type, found, before.get(job_type, {}), after.get(job_type, {}))
                    await self._give_back(job_type, lease, found, known, unknown_after)

    async def _ask(
        self, types: Sequence[JobType], lease: Lease
    ) -> tuple[dict[JobType, dict[Key, Claim]], dict[JobType, list[Row]]]:
        """What the node knew just before the query, and the rows. In between nothing is claimed: that takes the same session.

        A type whose table was dropped has no rows; one whose table can't be asked is left out.
        """
        async with self._session.use() as connection:
            before, began = self._known(lease), time.monotonic()
            rows: dict[JobType, list[Row]] = {}
            for job_type in types:
                if not job_type.oid and job_type.last_oid and not await exists(connection, job_type.last_oid):
                    rows[job_type] = []
            present = [job_type for job_type in types if job_type.oid]
            commands = [[Command(job_type.statement("list_claims"), {"node": lease.node})] for job_type in present]
            async with pipeline.sent(connection, *commands) as answers:
                answered = [(job_type, await answers.next()) for job_type in present]
            for job_type, answer in answered:
                if answer.error is None:
                    self._holds[job_type].end()
                    found = pipeline.rows(pipeline.adapter_of(connection), answer.results[-1])
                    rows[job_type] = [Row(*row) for row in found]
                elif is_lost(connection, answer.error):
                    raise answer.error
                else:
                    cause = cause_of(answer.error)
                    self._holds[job_type].begin(WHY_HELD.get(cause, "query_failed"), brief(answer.error))
            self._took += time.monotonic() - began
            return before, rows

    def _known(self, lease: Lease) -> dict[JobType, dict[Key, Claim]]:
        """Claims that this node has, or whose outcome it has, by type."""
        known: dict[JobType, dict[Key, Claim]] = {}
        for claims in (self._holder.held(lease), self._unwritten()):
            for claim in claims:
                known.setdefault(claim.job_type, {})[claim.id, claim.locked_at] = claim
        return known

    def _stop(self, job_type: JobType, rows: list[Row], before: dict[Key, Claim], now: dict[Key, Claim]) -> None:
        there = {row.key for row in rows}
        gone = [claim for key, claim in now.items() if key in before and key not in there]
        waiting = {(claim.job_type, claim.id, claim.locked_at) for claim in self._unwritten()}
        gone = [claim for claim in gone if (claim.job_type, claim.id, claim.locked_at) not in waiting]
        if gone:
            events.claims_gone(job_type.name, [claim.id for claim in gone])
            self._holder.stop_lost(gone)
        for row in rows:
            if row.cancelled and self._holder.cancel(job_type, row.id):
                events.cancel_requested(job_type.name, row.id)

    # --- claims whose answer never came ---

    async def _give_back(
        self, job_type: JobType, lease: Lease, rows: list[Row], known: dict[Key, Claim], unknown_after: float
    ) -> None:
        after = 0.0 if self._session.alone else unknown_after
        aside = set(self._aside[job_type].ids())
        for row in rows:
            if row.age > after and row.key not in known and row.id not in aside:
                async with self._session.use() as connection:
                    await self._release(connection, job_type, lease, row)
                if not self._holds[job_type].is_over:
                    return

    async def _release(self, connection: AsyncConnection[Any], job_type: JobType, lease: Lease, row: Row) -> None:
        """Nobody performs it. If it refuses to wait again, another row may be in its way, for now or for good."""
        reason, first = None, None
        for how in ("now", "later", "failed"):
            parameters = {
                "id": row.id, "locked_at": row.locked_at, "node": lease.node, "how": how, "reason": reason,
                "fingerprint": fingerprint("refused", reason),
            }  # fmt: skip
            try:
                (result,) = await pipeline.ask(connection, [Command(job_type.statement("release_claim"), parameters)])
            except psycopg.Error as error:
                if is_lost(connection, error):
                    raise
                first = first or error
                cause = cause_of(error)
                if cause in NO_ROWS and cause is not Cause.LOCKED:
                    self._holds[job_type].begin(WHY_HELD[cause], brief(error))
                    return
                if cause not in ROWS_OWN:
                    break
                reason = f"the database refuses to let this job wait again: {brief(first)}" if how == "later" else None
            else:
                if result.command_tuples:
                    events.claim_given_back(job_type.name, row.id)
                return
        assert first is not None
        self._aside[job_type].add(row.id, brief(first))
