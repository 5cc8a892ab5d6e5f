"""Old rows go, by one node at a time, and only when something can have expired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from cluster import Job, statements
from cluster.coordinator.prune import PAUSE, WINDOW, Pruner
from cluster.coordinator.refusal import search
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles
from cluster.migration import migrate_jobs

INTERVAL = 60.0
DUE_IN = "SELECT extract(epoch FROM due_at - now())::float8 FROM cluster.prune_walks"


class OldJob(Job):
    retention = timedelta(hours=1)
    retention_failed = timedelta(days=30)

    async def perform(self) -> None: ...


class FleetingJob(Job):
    retention = timedelta(0)

    async def perform(self) -> None: ...


class Node:
    """What prunes, without the rest of a node."""

    def __init__(self, url: str) -> None:
        self.troubles = Troubles()
        self.session = Session(lambda: url, "finish", setup=_short_waits)
        self.pruner = Pruner(self.session, self.troubles, INTERVAL)

    async def step(self, conn: psycopg.Connection[Any]) -> bool:
        """Whether there was one to take; the pause before it is over at once."""
        conn.execute("UPDATE cluster.prune_walks SET due_at = now() WHERE reached IS NOT NULL")
        return await self.pruner.tick() == PAUSE

    async def walk(self, conn: psycopg.Connection[Any]) -> int:
        """To the end; returns the number of steps."""
        steps = 0
        while await self.step(conn):
            steps += 1
        return steps

    def reasons(self) -> list[str]:
        return [item["reason"] for item in self.troubles.listed()]


async def _short_waits(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("SET lock_timeout = '100ms'")


@pytest.fixture
async def nodes(conn: psycopg.Connection, database_url: str) -> AsyncIterator[tuple[Node, Node]]:
    migrate_jobs(conn, [OldJob])
    nodes = Node(database_url), Node(database_url)
    yield nodes
    for node in nodes:
        await node.session.close()


@pytest.fixture
def node(nodes: tuple[Node, Node]) -> Node:
    return nodes[0]


def insert(
    conn: psycopg.Connection[Any], count: int, ago: str, status: str = "succeeded", table: str = "old_jobs"
) -> None:
    """Finished rows."""
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(
            f"INSERT INTO {table} (status, finished_at) "
            "SELECT %s::cluster.job_status, now() - %s::interval FROM generate_series(1, %s)".encode(),
            [status, ago, count],
        )


def number(conn: psycopg.Connection[Any], table: str = "old_jobs") -> int:
    (found,) = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,)
    return int(found)


def due_in(conn: psycopg.Connection[Any]) -> float:
    (seconds,) = conn.execute(DUE_IN.encode()).fetchone() or (0.0,)
    return float(seconds)


async def test_what_is_kept_no_longer_goes_and_the_rest_stays(conn: psycopg.Connection, node: Node) -> None:
    insert(conn, WINDOW + 10, "2 hours")
    insert(conn, 10, "30 minutes")
    insert(conn, 5, "2 hours", "failed")
    insert(conn, 5, "31 days", "timed_out")
    conn.execute("INSERT INTO old_jobs DEFAULT VALUES")
    assert await node.walk(conn) == 2
    left = conn.execute("SELECT status::text, count(*) FROM old_jobs GROUP BY 1 ORDER BY 1").fetchall()
    assert left == [("failed", 5), ("not_started", 1), ("succeeded", 10)]


async def test_the_next_walk_comes_when_the_first_row_that_was_left_expires(
    conn: psycopg.Connection, node: Node
) -> None:
    insert(conn, 10, "2 hours", "failed")  # older than successes are kept, and of no matter to when those expire
    insert(conn, 10, "20 minutes")
    insert(conn, 10, "15 minutes")
    await node.walk(conn)
    assert due_in(conn) == pytest.approx(40 * 60, abs=20)


async def test_rows_that_finish_from_now_on_are_met_when_they_expire(conn: psycopg.Connection, node: Node) -> None:
    insert(conn, 10, "2 hours", "failed")
    await node.walk(conn)
    assert due_in(conn) == pytest.approx(3600, abs=20)


async def test_where_rows_expire_all_the_time_walks_keep_a_distance(conn: psycopg.Connection, node: Node) -> None:
    insert(conn, 10, "3599 seconds")
    await node.walk(conn)
    assert due_in(conn) == pytest.approx(60, abs=10)


async def test_a_type_whose_rows_go_at_once_is_not_walked_all_the_time(conn: psycopg.Connection, node: Node) -> None:
    conn.execute("DROP TABLE old_jobs")
    migrate_jobs(conn, [FleetingJob])
    insert(conn, 10, "1 hour", table="fleeting_jobs")
    insert(conn, 10, "1 hour", "failed", table="fleeting_jobs")
    await node.walk(conn)
    assert number(conn, "fleeting_jobs") == 10
    assert due_in(conn) == pytest.approx(3600, abs=20)


async def test_nothing_to_expire_costs_no_look_at_the_table(conn: psycopg.Connection, nodes: tuple[Node, Node]) -> None:
    insert(conn, 10, "1 minute")
    await nodes[0].walk(conn)
    conn.execute("ALTER TABLE old_jobs RENAME COLUMN finished_at TO hidden")  # whoever looks finds out
    for node in nodes:
        assert await node.pruner.tick() == INTERVAL
        assert node.reasons() == []


async def test_no_two_nodes_take_the_same_step(
    conn: psycopg.Connection, nodes: tuple[Node, Node], database_url: str
) -> None:
    insert(conn, 10, "2 hours")
    first, second = nodes
    with psycopg.connect(database_url) as other:
        other.execute("SELECT FROM old_jobs FOR UPDATE")
        assert await first.pruner.tick() == PAUSE
        assert first.reasons() == ["table_locked"], "it waits for those rows no longer than for anything"
        assert await second.pruner.tick() == INTERVAL
    assert number(conn) == 10
    conn.execute("UPDATE cluster.prune_walks SET due_at = now()")  # as when the seconds for which it was taken are over
    assert await second.pruner.tick() == PAUSE
    assert number(conn) == 0


async def test_another_node_goes_on_where_one_has_died(conn: psycopg.Connection, nodes: tuple[Node, Node]) -> None:
    insert(conn, 2 * WINDOW + 10, "2 hours")
    assert await nodes[0].step(conn)
    (reached,) = conn.execute("SELECT reached FROM cluster.prune_walks").fetchone() or (None,)
    assert reached == WINDOW
    insert(conn, 1, "2 hours")
    conn.execute("UPDATE old_jobs SET id = 1 WHERE id = (SELECT max(id) FROM old_jobs)")  # behind it
    assert await nodes[1].walk(conn) == 2
    assert conn.execute("SELECT id FROM old_jobs").fetchall() == [(1,)]


async def test_rows_that_cannot_be_deleted_are_set_aside_and_keep_no_other(
    conn: psycopg.Connection, node: Node
) -> None:
    insert(conn, 1000, "2 hours")
    conn.execute("CREATE TABLE receipts (job_id bigint REFERENCES old_jobs)")
    conn.execute("INSERT INTO receipts SELECT id FROM old_jobs WHERE id % 10 = 0")
    assert await node.walk(conn) < 50
    assert number(conn) == 100
    assert node.reasons() == ["prune_refused"]
    assert due_in(conn) < 86_400 + 20
    conn.execute("UPDATE cluster.prune_walks SET due_at = now()")
    assert await node.walk(conn) == 1, "they are not tried again for a while"
    conn.execute("TRUNCATE receipts")
    conn.execute("UPDATE old_jobs SET finished_at = now() WHERE id IN (10, 20)")
    conn.execute("DELETE FROM old_jobs WHERE id = 30")
    (table,) = node.pruner._tables.values()
    table.aside.try_soon(1000)
    assert await node.pruner.tick() == INTERVAL, "no walk is due"
    assert conn.execute("SELECT id FROM old_jobs ORDER BY id").fetchall() == [(10,), (20,)], (
        "those are not expired any more"
    )
    assert node.reasons() == []


async def test_a_table_that_refuses_every_deletion_is_left_alone(conn: psycopg.Connection, node: Node) -> None:
    insert(conn, 10, "2 hours")
    conn.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
        "INSERT INTO nowhere VALUES (OLD.id); RETURN OLD; END$$;"
        "CREATE TRIGGER audit BEFORE DELETE ON old_jobs FOR EACH ROW EXECUTE FUNCTION audit()"
    )
    assert await node.pruner.tick() == PAUSE
    assert node.reasons() == ["table_refuses_pruning"]
    conn.execute("UPDATE cluster.prune_walks SET due_at = now()")
    assert await node.pruner.tick() == INTERVAL, "it is held"
    conn.execute("CREATE TABLE nowhere (id bigint)")
    node.pruner._tables[table_oid(conn)].hold._pause.until = 0.0
    assert await node.walk(conn) == 1
    assert (number(conn), node.reasons()) == (0, [])


def table_oid(conn: psycopg.Connection[Any]) -> int:
    (oid,) = conn.execute("SELECT 'old_jobs'::regclass::oid::bigint").fetchone() or (0,)
    return int(oid)


async def test_another_retention_is_noticed(conn: psycopg.Connection, node: Node) -> None:
    insert(conn, 10, "30 minutes")
    await node.walk(conn)
    assert number(conn) == 10
    conn.execute("UPDATE cluster.job_types SET retention = '10 minutes'")
    await node.walk(conn)
    assert number(conn) == 0
    conn.execute("UPDATE cluster.job_types SET retention = NULL, retention_failed = NULL")
    assert not await node.step(conn)
    assert conn.execute("SELECT FROM cluster.prune_walks").fetchall() == []


async def test_another_retention_is_noticed_in_the_middle_of_a_step(
    conn: psycopg.Connection, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk begins anew, and the step that looked with the old one does not send it on."""
    insert(conn, WINDOW, "30 minutes")
    insert(conn, 1, "2 hours")
    assert await node.step(conn)

    async def changed_first(*arguments: Any) -> Any:
        if conn.execute("SELECT retention FROM cluster.job_types").fetchone() == (timedelta(hours=1),):
            conn.execute("UPDATE cluster.job_types SET retention = '10 minutes'")
            conn.execute(statements.statement("plan_pruning"))  # as another node does
        return await search(*arguments)

    monkeypatch.setattr("cluster.coordinator.prune.search", changed_first)
    await node.walk(conn)
    assert number(conn) == 0


async def test_a_row_that_is_to_be_kept_for_longer_by_now_stays(
    conn: psycopg.Connection, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(conn, 2, "2 hours")

    async def changed_first(*arguments: Any) -> Any:
        conn.execute("UPDATE cluster.job_types SET retention = '1 day'")
        return await search(*arguments)

    monkeypatch.setattr("cluster.coordinator.prune.search", changed_first)
    await node.walk(conn)
    assert number(conn) == 2


async def test_a_table_that_is_gone_ends_its_walk(conn: psycopg.Connection, node: Node) -> None:
    insert(conn, 10, "30 minutes")
    await node.walk(conn)
    conn.execute("DROP TABLE old_jobs")
    assert not await node.step(conn)
    assert conn.execute("SELECT FROM cluster.prune_walks").fetchall() == []


async def test_a_row_that_was_retried_in_the_meantime_stays(
    conn: psycopg.Connection, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(conn, 2, "2 hours")

    async def retried_first(*arguments: Any) -> Any:
        conn.execute("SELECT cluster.retry('old_jobs', 1)")
        return await search(*arguments)

    monkeypatch.setattr("cluster.coordinator.prune.search", retried_first)
    await node.walk(conn)
    assert conn.execute("SELECT id, status::text FROM old_jobs").fetchall() == [(1, "not_started")]
