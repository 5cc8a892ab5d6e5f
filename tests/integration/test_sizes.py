"""Many queues, many types, large rows: what grows with them is not what others pay."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

from tests.fault.proxy import Proxy
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import others_go_on, peak_megabytes, run, wait_status

pytestmark = pytest.mark.fault

SOURCE = """
from typing import Any
from cluster import Job

class OddJob(Job):
    label: str = ""
    data: dict[str, Any] = {}
    max_concurrency = None
    async def perform(self): ...

class GoodJob(Job):
    async def perform(self): ...
"""


# --- queues ---


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rows", [1, 3])
def test_ten_thousand_queues_are_drained_about_as_fast_as_one(
    rows: int, conn: psycopg.Connection, run_node: RunNode
) -> None:
    """One and many in turn, in one run, so that both see the same machine."""
    node = run_node(SOURCE)
    seconds: dict[str, float] = {}
    for name in ("'one'", "'tenant ' || n % 10000") * 2:
        begun = time.monotonic()
        run(
            conn,
            f"INSERT INTO odd_jobs (queue, priority) SELECT {name}, 1 + n * 37 % 100 FROM generate_series(1, {rows * 10_000}) n",
        )
        wait_for(
            conn,
            "SELECT count(*) = 0 FROM (SELECT FROM odd_jobs WHERE status <> 'succeeded' LIMIT 1) AS one",
            timeout=60,
        )
        seconds[name] = min(time.monotonic() - begun, seconds.get(name, 60.0))
        others_go_on(conn, timeout=2)
        run(conn, "TRUNCATE odd_jobs")
    one, many = seconds.values()
    assert many < 2 * one + 1.0, f"{many:.1f} s instead of {one:.1f} s"
    assert len([name for name in node.metrics() if name.startswith("cluster_jobs_claimed_total{")]) <= 202
    assert node.stop() == 0


# --- types, over a network ---


@pytest.mark.parametrize("types", [60, 300])
def test_a_node_with_many_types_claims_within_seconds_over_a_slow_network(
    types: int, conn: psycopg.Connection, run_node: RunNode
) -> None:
    source = "from cluster import Job\n" + "".join(
        f"class N{number}Job(Job):\n    async def perform(self): ...\n" for number in range(types)
    )
    proxy = Proxy(Path(conn.info.host) / f".s.PGSQL.{conn.info.port}")
    proxy.start()
    try:
        proxy.delay = 0.02
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{conn.info.dbname}?sslmode=disable"
        run_node(source, url=url)
        for table in ("n0_jobs", f"n{types - 1}_jobs"):
            ((job_id,),) = run(conn, f"INSERT INTO {table} DEFAULT VALUES RETURNING id")
            wait_status(conn, table, "succeeded", [job_id], timeout=8)
    finally:
        proxy.stop()


# --- large rows ---

OF_240_MB = {
    "text": "INSERT INTO odd_jobs (label) VALUES (repeat('0123456789', 24000000)) RETURNING id",
    "jsonb": "INSERT INTO odd_jobs (data) VALUES (jsonb_build_object('text', repeat('0123456789', 24000000))) RETURNING id",
}


@pytest.mark.parametrize("kind", OF_240_MB)
def test_a_row_that_no_node_can_carry_is_failed_with_a_sentence_about_its_size(
    kind: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE)
    ((large,),) = run(conn, OF_240_MB[kind])
    wait_status(conn, "odd_jobs", "failed", [large], timeout=30)
    assert run(conn, "SELECT last_error ~ '22[0-9] MB', attempts_count FROM odd_jobs") == [(True, 0)]
    others_go_on(conn, "good_jobs", "odd_jobs")
    assert peak_megabytes(node.pid) < 400
    assert node.stop() == 0


def test_a_row_of_a_hundred_megabytes_runs_or_says_why_not_and_harms_no_node(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE)
    ((large,),) = run(conn, "INSERT INTO odd_jobs (label) VALUES (repeat('0123456789', 10000000)) RETURNING id")
    wait_for(conn, "SELECT status IN ('succeeded', 'failed') FROM odd_jobs WHERE id = %s", [large], timeout=30)
    said = run(conn, "SELECT status = 'succeeded' OR last_error ~ '95 MB', crashes_count FROM odd_jobs")
    assert said == [(True, 0)]
    others_go_on(conn, "good_jobs", "odd_jobs")
    assert peak_megabytes(node.pid) < 600
    assert node.stop() == 0


def test_large_rows_pass_through_a_node_one_by_one(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE)
    run(conn, "INSERT INTO odd_jobs (label) SELECT repeat('0123456789', 2400000) FROM generate_series(1, 8)")
    wait_for(conn, "SELECT bool_and(status = 'succeeded' AND attempts_count = 1) FROM odd_jobs", timeout=60)
    assert peak_megabytes(node.pid) < 400
    assert node.stop() == 0
