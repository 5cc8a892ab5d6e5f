"""Clients without the product: what the same work costs when SQL is all there is. Each runs in a process of its own.

bench_bare_jobs has the columns, indexes, checks and storage parameters of a job table, and none of its triggers.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection, Connection

from bench.board import Board
from cluster import statements
from cluster.coordinator import arrays

TABLE = "bench_bare_jobs"
CHANNEL = "bench_bare"
BATCH = 500

# The shape of the product's statements: rows in claim order, locked and skipped, picked before the update; outcomes by array.
CLAIM = """
WITH picked AS MATERIALIZED (
    SELECT id FROM bench_bare_jobs WHERE status = 'not_started' AND queue = 'default'
    ORDER BY priority, run_at, id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE bench_bare_jobs SET
    status = 'running', attempts_count = attempts_count + 1, locked_at = now(), locked_by = %s,
    started_at = now(), finished_at = NULL, updated_at = now()
WHERE id = ANY (ARRAY(SELECT id FROM picked))
RETURNING id, number
"""
FINISH = """
UPDATE bench_bare_jobs SET status = 'succeeded', finished_at = now(), locked_at = NULL, updated_at = now()
WHERE id = ANY (%s::bigint[]) AND status = 'running' AND locked_by = %s
"""
CREATE = """
SELECT cluster.create_job_table('bench_bare_jobs');
ALTER TABLE bench_bare_jobs ADD COLUMN number integer NOT NULL DEFAULT 0;
DROP TRIGGER cluster_ring_doorbell ON bench_bare_jobs;
DROP TRIGGER cluster_check_new_job ON bench_bare_jobs;
DROP TRIGGER cluster_reschedule_job ON bench_bare_jobs;
DELETE FROM cluster.job_types WHERE name = 'bench_bare_jobs';
CREATE FUNCTION bench_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('bench_bare', '');
    RETURN NULL;
END $$;
"""
ADD_NOTIFY = """
CREATE TRIGGER bench_notify AFTER INSERT ON bench_bare_jobs FOR EACH STATEMENT EXECUTE FUNCTION bench_notify()
"""
DROP_NOTIFY = "DROP TRIGGER bench_notify ON bench_bare_jobs"


def drain(url: str, gate: Barrier) -> None:
    """Claims and finishes until nothing is left."""
    node = uuid4()
    with _connect(url) as connection:
        gate.wait()
        while rows := connection.execute(CLAIM, [BATCH, node], binary=True).fetchall():
            connection.execute(FINISH, [[job_id for job_id, _ in rows], node])


def drain_with_product_statements(url: str, gate: Barrier, table: str, node: UUID) -> None:
    """The same loop with claim_jobs and finish_jobs as the product ships them. node: a row of cluster.nodes."""
    with _connect(url) as connection:
        arrays.register(cast("AsyncConnection[Any]", connection))  # it asks for no more than the adapters
        claim, finish = _product_statements(connection, table, node)
        gate.wait()
        while claimed := claim():
            finish(*claimed)


def answer(url: str, board_path: Path, ready: Event, stop: Event) -> None:
    """The plainest worker: LISTEN, claim when told, note the time, finish."""
    board, node = Board(board_path), uuid4()
    with _connect(url) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        connection.execute(CLAIM, [1, node])
        ready.set()
        while not stop.is_set():
            # As a list: the generator holds the connection's lock.
            if list(connection.notifies(timeout=0.2, stop_after=1)):
                rows = connection.execute(CLAIM, [16, node], binary=True).fetchall()
                now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                for _, place in rows:
                    board.note(place, now)
                connection.execute(FINISH, [[job_id for job_id, _ in rows], node])


def _connect(url: str) -> Connection:
    """As a coordinator's connections are set up."""
    connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute("SET enable_seqscan = off")
    connection.execute("SET jit = off")
    return connection


_Claimed = tuple[list[int], list[bytes]]


def _product_statements(
    connection: Connection, table: str, node: UUID
) -> tuple[Callable[[], _Claimed | None], Callable[[list[int], list[bytes]], None]]:
    found = connection.execute("SELECT %s::regclass::oid", [table]).fetchone()
    parameters: dict[str, Any] = {
        "node": node, "table": found and found[0], "queue": "default", "priority": 100, "slots": BATCH,
        "demand": BATCH, "max_attempts": 10, "set_aside": arrays.BigIntegers([]), "from_priority": 0, "from_run_at": None,
        "from_id": 0, "only": None, "whole": BATCH,
    }  # fmt: skip
    claim_statement = statements.for_table("claim_jobs", (table,), ("number",))
    finish_statement = statements.for_table("finish_jobs", (table,))
    cursor = connection.cursor(binary=True)

    def claim() -> _Claimed | None:
        result = cursor.execute(claim_statement, parameters).pgresult
        assert result is not None
        places = range(result.ntuples)
        ids = [struct.unpack(">q", result.get_value(place, 0) or b"")[0] for place in places]
        return (ids, [result.get_value(place, 3) or b"" for place in places]) if ids else None

    def finish(ids: list[int], locked_at: list[bytes]) -> None:
        count = len(ids)
        outcomes = {
            "node": node, "id": arrays.BigIntegers(ids), "locked_at": arrays.Timestamps(locked_at),
            "status": ["succeeded"] * count, "delay": arrays.Floats([None] * count), "error": [None] * count,
            "attempts": arrays.Integers([0] * count), "crashes": arrays.Integers([0] * count),
            "begun": arrays.Floats([0.0] * count), "failure": [None] * count, "fingerprint": [None] * count,
        }  # fmt: skip
        hit = {place - 1 for place, _ in cursor.execute(finish_statement, outcomes)}
        # The other client's claim, if its snapshot is older than ours, locks rows that we hold before it sees that.
        missed = [place for place in range(count) if place not in hit]
        if missed:
            finish([ids[place] for place in missed], [locked_at[place] for place in missed])

    return claim, finish
