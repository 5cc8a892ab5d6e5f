"""What a node knows, held against its rows in the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from cluster import Job
from cluster.coordinator import job_types
from cluster.coordinator.claims import Claim
from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.coordinator.reconcile import Reconciler
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles
from cluster.frames import COLUMNS, LOCKED_AT
from cluster.lease_clock import boottime
from cluster.migration import migrate_jobs

INTERVAL = 0.0001


class ComparedJob(Job):
    async def perform(self) -> None: ...


class Node:
    """Claims in one session, as a real one does, and knows of what it has claimed only until that has ended."""

    def __init__(self, url: str) -> None:
        self.session = Session(lambda: url, "claim")
        self.lease = Lease(uuid4(), boottime(), 60)
        self.types = job_types.job_types([ComparedJob])
        self.known: list[Claim] = []
        self.stopped: list[Claim] = []
        self.reconciler = Reconciler(self.session, self.types, Troubles(), self, lambda: self.lease, list, INTERVAL)

    def held(self, lease: Lease) -> list[Claim]:
        """As soon as the session is free it has forgotten: that has ended and been written while the rows were on their way."""
        return self.known if self.session._turn.locked() else []

    def cancel(self, job_type: JobType, job_id: int) -> bool:
        return False

    def stop_lost(self, claims: Iterable[Claim]) -> None:
        self.stopped += claims

    async def claim(self, connection: psycopg.AsyncConnection[Any]) -> Claim:
        cursor = await connection.execute(
            "UPDATE compared_jobs SET status = 'running', locked_at = now(), locked_by = %s RETURNING id, "
            "(extract(epoch FROM locked_at - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint",
            [self.lease.node],
        )
        job_id, locked_at = await cursor.fetchone() or (0, 0)
        head: list[bytes | None] = [None] * COLUMNS
        head[LOCKED_AT] = locked_at.to_bytes(8, "big", signed=True)
        return Claim(self.types[0], job_id, head, 0.0, self.lease)


@pytest.fixture
async def node(conn: psycopg.Connection, database_url: str) -> AsyncIterator[Node]:
    migrate_jobs(conn, [ComparedJob])
    conn.execute("INSERT INTO compared_jobs DEFAULT VALUES")
    node = Node(database_url)
    yield node
    await node.session.close()


def status(conn: psycopg.Connection) -> str:
    row = conn.execute("SELECT status::text FROM compared_jobs").fetchone()
    assert row is not None
    return str(row[0])


async def test_a_claim_whose_answer_was_lost_goes_back(conn: psycopg.Connection, node: Node) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
        await node.claim(connection)
    assert await node.reconciler.tick() is not None
    assert status(conn) == "not_started"


@pytest.mark.parametrize("locked_at", ["infinity", "-infinity", "2999-01-01", "0001-01-01 BC"])
async def test_a_claim_that_somebody_dates_anew_goes_back_and_harms_no_other(
    locked_at: str, conn: psycopg.Connection, node: Node
) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
        conn.execute("INSERT INTO compared_jobs DEFAULT VALUES")
        await node.claim(connection)
    conn.execute("UPDATE compared_jobs SET locked_at = %s::timestamptz WHERE id = 1", [locked_at])
    await node.reconciler.tick()
    assert conn.execute("SELECT DISTINCT status::text FROM compared_jobs").fetchall() == [("not_started",)]


async def test_what_is_claimed_before_the_comparison_gets_its_turn_is_known(
    conn: psycopg.Connection, node: Node
) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
        comparison = asyncio.create_task(node.reconciler.tick())
        await asyncio.sleep(0)  # it waits for the session from now on
        node.known = [await node.claim(connection)]
    await comparison
    assert status(conn) == "running"


async def test_comparisons_take_a_tenth_of_the_time_at_most(node: Node) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
    began = time.monotonic()
    pause = await node.reconciler.tick()
    assert pause is not None
    assert 5 * INTERVAL < pause <= 10 * (time.monotonic() - began)


async def test_a_question_that_cannot_be_answered_stops_no_job(conn: psycopg.Connection, node: Node) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
        claim = await node.claim(connection)
    node.held = lambda lease: [claim]  # type: ignore[method-assign]
    conn.execute("ALTER TABLE compared_jobs RENAME TO elsewhere")
    await node.reconciler.tick()
    assert node.stopped == []
    node.types[0].oid = 0  # as the claimer finds it
    await node.reconciler.tick()
    assert node.stopped == [], "the table is there, under another name"
    conn.execute("DROP TABLE elsewhere")
    for hold in node.reconciler._holds.values():
        hold.end()
    await node.reconciler.tick()
    assert node.stopped == [claim]


async def test_the_same_id_under_another_claim_is_another_job(conn: psycopg.Connection, node: Node) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
        old = await node.claim(connection)
        conn.execute("TRUNCATE compared_jobs RESTART IDENTITY")
        conn.execute("INSERT INTO compared_jobs DEFAULT VALUES")
        new = await node.claim(connection)
    assert old.id == new.id
    node.held = lambda lease: [old, new]  # type: ignore[method-assign]
    await node.reconciler.tick()
    assert node.stopped == [old]
