"""Several nodes under one limit: each gets a part of it, and none of it stays unused."""

from __future__ import annotations

import psycopg

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for

JOBS = """
import asyncio
from cluster import Job

class SharedJob(Job):
    seconds: float
    max_concurrency = 4

    async def perform(self):
        await asyncio.sleep(self.seconds)
"""
RUNNING = "SELECT locked_by, count(*) AS jobs FROM shared_jobs WHERE status = 'running' GROUP BY locked_by"
TWO_EACH = f"SELECT array_agg(jobs) = '{{2,2}}', array_agg(jobs) FROM ({RUNNING}) AS running"
FOUR_ON_ONE = f"SELECT array_agg(jobs) = '{{4}}', array_agg(jobs) FROM ({RUNNING}) AS running"


def insert(conn: psycopg.Connection, count: int, seconds: float) -> None:
    conn.execute("INSERT INTO shared_jobs (seconds) SELECT %s FROM generate_series(1, %s)", [seconds, count])


def test_two_nodes_have_half_of_the_places_each(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    run_node(JOBS)
    insert(conn, 1_000, seconds=0.1)
    wait_for(conn, TWO_EACH)


def test_a_node_that_comes_later_gets_its_share_as_jobs_end(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    insert(conn, 1_000, seconds=0.1)
    wait_for(conn, FOUR_ON_ONE)
    run_node(JOBS)
    wait_for(conn, TWO_EACH)


def test_a_node_takes_more_than_its_share_if_no_other_wants_it(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(JOBS)
    run_node(JOBS, queues="others")
    insert(conn, 1_000, seconds=0.1)
    wait_for(conn, FOUR_ON_ONE)


def test_sync_jobs_are_shared_too(conn: psycopg.Connection, run_node: RunNode) -> None:
    source = JOBS.replace("async def", "def").replace("await asyncio.sleep", "__import__('time').sleep")
    run_node(source, processes=4)
    run_node(source, processes=4)
    insert(conn, 1_000, seconds=0.1)
    wait_for(conn, TWO_EACH)
