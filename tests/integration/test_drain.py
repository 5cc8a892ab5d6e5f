"""Nodes that are told from outside to drain: they claim nothing, finish what runs, and stay until they are told otherwise."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from cluster import statements
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until
from tests.support.rows import run

SOURCE = """
import asyncio, os
from cluster import Job

class MailJob(Job):
    label: str = ""
    async def perform(self):
        while self.label == "held" and not os.path.exists("over"):
            await asyncio.sleep(0.02)
"""
STATES = "SELECT array_agg(state ORDER BY started_at) = %s FROM cluster.nodes"
SELDOM = {"heartbeat_interval": "30s", "lease": "100s"}
OFTEN = {"heartbeat_interval": "200ms", "lease": "3s"}


def test_a_node_that_is_told_to_drain_finishes_what_runs_and_waits_to_be_told_otherwise(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, **SELDOM)  # it hears at once, not with the next heartbeat
    run(conn, "INSERT INTO mail_jobs (label) VALUES ('held')")
    wait_for(conn, "SELECT status = 'running' FROM mail_jobs")
    ((asked,),) = run(conn, "SELECT cluster.drain(hostname || ':' || pid, 'new disks') FROM cluster.nodes")
    assert run(conn, "SELECT id FROM cluster.nodes") == [(asked,)]
    wait_until(lambda: node.get("/readyz") == 503, "it is not ready")
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    (node.app_dir / "over").touch()
    wait_for(conn, "SELECT status = 'succeeded' FROM mail_jobs WHERE id = 1")
    assert run(conn, "SELECT state FROM cluster.nodes") == [("draining",)]
    assert run(conn, "SELECT status::text FROM mail_jobs WHERE id = 2") == [("not_started",)]
    assert (node.get("/livez"), node.get("/readyz"), node.exit_code) == (200, 503, None)
    assert node.log("drain_requested")[0]["running"] == 1
    run(conn, "SELECT cluster.undrain(%s::uuid)", asked)
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM mail_jobs")
    assert run(conn, "SELECT state FROM cluster.nodes") == [("live",)]
    assert node.log("drain_over")
    assert node.stop() == 0


def test_what_waits_goes_to_others_and_a_node_that_starts_anew_does_not_drain(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    first = run_node(SOURCE, **OFTEN)
    second = run_node(SOURCE, **OFTEN)
    run(conn, "SELECT cluster.drain(id) FROM cluster.nodes WHERE pid = %s", first.pid)
    wait_until(lambda: first.get("/readyz") == 503, "it is not ready")
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM mail_jobs")
    query = "SELECT pid FROM cluster.nodes WHERE id = (SELECT locked_by FROM mail_jobs)"
    assert run(conn, query) == [(second.pid,)]
    assert second.stop() == 0
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    assert first.stop() == 0
    wait_for(conn, "SELECT bool_and(state = 'stopped') FROM cluster.nodes")
    first.start()
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM mail_jobs")


def test_a_node_that_registers_again_drains_on_and_forgets_nothing(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, **OFTEN)
    run(conn, "SELECT cluster.drain(%s, 'why')", run(conn, "SELECT hostname FROM cluster.nodes")[0][0])
    wait_until(lambda: node.get("/readyz") == 503, "it is not ready")
    run(conn, "UPDATE cluster.nodes SET state = 'lost'")
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    wait_for(conn, STATES, [["lost", "draining"]])
    moved = "SELECT reason FROM cluster.drains WHERE node = (SELECT id FROM cluster.nodes WHERE state = 'draining')"
    assert run(conn, moved) == [("why",)]
    (before,) = run(conn, "SELECT max(heartbeat_at) FROM cluster.nodes")[0]
    wait_for(conn, "SELECT max(heartbeat_at) > %s::timestamptz + interval '1 s' FROM cluster.nodes", [before])
    assert run(conn, "SELECT status::text FROM mail_jobs") == [("not_started",)]
    run(conn, "SELECT cluster.undrain(id) FROM cluster.nodes WHERE state = 'draining'")
    wait_for(conn, "SELECT status = 'succeeded' FROM mail_jobs")


def test_who_leaves_a_transaction_open_holds_up_no_heartbeat(
    conn: psycopg.Connection, database_url: str, run_node: RunNode
) -> None:
    node = run_node(SOURCE, **OFTEN)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT cluster.drain(id) FROM cluster.nodes")
        (before,) = run(conn, "SELECT heartbeat_at FROM cluster.nodes")[0]
        wait_for(conn, "SELECT heartbeat_at > %s::timestamptz + interval '1 s' FROM cluster.nodes", [before])
        assert node.get("/readyz") == 200
        other.commit()
    wait_until(lambda: node.get("/readyz") == 503, "it is not ready")


def test_where_all_nodes_drain_one_of_them_tells_of_the_cluster(conn: psycopg.Connection) -> None:
    ids = [UUID(int=1), UUID(int=2)]
    for number, state in zip(ids, ("draining", "live"), strict=True):
        run(
            conn,
            "INSERT INTO cluster.nodes (id, hostname, pid, version, lease_until, state, jobs, queues, slots)"
            " VALUES (%s, 'web', %s, '1', now() + interval '1 h', %s, '{}', '{*}', 1)",
            number, number.int, state,
        )  # fmt: skip

    def tells() -> list[bool]:
        statement = statements.statement("is_oldest_node")
        return [row[0] for node in ids if (row := conn.execute(statement, {"node": node}).fetchone())]

    assert tells() == [False, True]
    run(conn, "UPDATE cluster.nodes SET state = 'stopped' WHERE state = 'live'")
    assert tells() == [True, False]


def test_nobody_is_told_to_drain_who_is_not_there(conn: psycopg.Connection) -> None:
    with pytest.raises(errors.UndefinedObject, match="no node web-9"):
        run(conn, "SELECT cluster.drain('web-9')")
