"""What a node knows, held against its rows in the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest

from cluster import Job
from cluster.coordinator import job_types
from cluster.coordinator.lease import Lease
from cluster.coordinator.pool import Pool
from cluster.coordinator.reconcile import Reconciler
from cluster.coordinator.session import Session
from cluster.lease_clock import boottime
from cluster.migrate import migrate_jobs

INTERVAL = 0.0001


class ComparedJob(Job):
    async def perform(self) -> None: ...


class Node:
    """Claims in one session, as a real one does, and knows of what it has claimed only until that has ended."""

    def __init__(self, url: str) -> None:
        self.session = Session(url, "claim")
        self.lease = Lease(uuid4(), boottime(), 60)
        self.types = job_types.job_types([ComparedJob])
        self.known: dict[tuple[int, int], Any] = {}
        self.reconciler = Reconciler(
            self.session, self.types, cast("Pool", self), lambda: self.lease, set[tuple[int, int]], INTERVAL
        )

    def held(self, lease: Lease) -> dict[tuple[int, int], Any]:
        """As soon as the session is free it has forgotten: that has ended and been written while the rows were on their way."""
        return self.known if self.session._turn.locked() else {}

    async def claim(self, connection: psycopg.AsyncConnection[Any]) -> int:
        cursor = await connection.execute(
            "UPDATE compared_jobs SET status = 'running', locked_at = now(), locked_by = %s RETURNING id",
            [self.lease.node],
        )
        (job_id,) = await cursor.fetchone() or (0,)
        return int(job_id)


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


async def test_what_is_claimed_before_the_comparison_gets_its_turn_is_known(
    conn: psycopg.Connection, node: Node
) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
        comparison = asyncio.create_task(node.reconciler.tick())
        await asyncio.sleep(0)  # it waits for the session from now on
        node.known = {(0, await node.claim(connection)): None}
    await comparison
    assert status(conn) == "running"


async def test_comparisons_take_a_tenth_of_the_time_at_most(node: Node) -> None:
    async with node.session.use() as connection:
        await job_types.resolve(connection, node.types)
    began = time.monotonic()
    pause = await node.reconciler.tick()
    assert pause is not None
    assert 5 * INTERVAL < pause <= 10 * (time.monotonic() - began)
