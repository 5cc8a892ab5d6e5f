"""A backlog keeps every slot busy, and its jobs are claimed ahead of the slots: others start all the same."""

from __future__ import annotations

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

SOURCE = """
import asyncio
from cluster import Job

class BacklogJob(Job):
    max_concurrency = None

    async def perform(self):
        await asyncio.sleep(0.02)

class PlainJob(Job):
    max_concurrency = None

    async def perform(self): ...

class LimitedJob(Job):
    max_concurrency = 1

    async def perform(self): ...

class OnceJob(Job):  # never claimed ahead: if the node died, its only attempt would be gone
    max_concurrency = None
    max_attempts = 1

    async def perform(self): ...

class SyncJob(Job):
    max_concurrency = None

    def perform(self): ...
"""
PROMPT = 2.0
"""Seconds, also on a busy machine. What is claimed ahead takes 0.05, the backlog nearly 20."""


@pytest.mark.parametrize("priority", [1, 50])
@pytest.mark.parametrize("kind", ["plain", "limited", "once", "sync"])
def test_a_saturated_node_starts_other_jobs_promptly(
    kind: str, priority: int, conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(SOURCE)
    conn.execute("INSERT INTO backlog_jobs (queue) SELECT 'default' FROM generate_series(1, 30000)")
    wait_for(conn, "SELECT count(*) > 500 FROM backlog_jobs WHERE status = 'succeeded'")
    for _ in range(5):
        insert = f"INSERT INTO {kind}_jobs (priority) VALUES (%s) RETURNING id"
        ids = [row[0] for row in conn.execute(insert.encode(), [priority])]
        seconds = f"SELECT extract(epoch FROM started_at - created_at)::float8 FROM {kind}_jobs WHERE id = %s"
        assert wait_for(conn, seconds, ids) < PROMPT
    assert conn.execute("SELECT count(*) > 0 FROM backlog_jobs WHERE status = 'not_started'").fetchone() == (True,)


def test_types_of_equal_priority_share_a_saturated_node(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(SOURCE)
    conn.execute("INSERT INTO backlog_jobs (queue) SELECT 'default' FROM generate_series(1, 30000)")
    wait_for(conn, "SELECT count(*) > 500 FROM backlog_jobs WHERE status = 'succeeded'")
    conn.execute("INSERT INTO once_jobs (queue) SELECT 'default' FROM generate_series(1, 200)")
    conn.execute("INSERT INTO limited_jobs (queue) SELECT 'default' FROM generate_series(1, 200)")
    wait_for(conn, "SELECT count(*) = 200 FROM once_jobs WHERE status = 'succeeded'", timeout=15)
    wait_for(conn, "SELECT count(*) = 200 FROM limited_jobs WHERE status = 'succeeded'", timeout=15)
    assert conn.execute("SELECT count(*) > 0 FROM backlog_jobs WHERE status = 'not_started'").fetchone() == (True,)
