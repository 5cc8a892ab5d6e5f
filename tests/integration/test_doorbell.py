"""The doorbell with real nodes: whatever enqueues, and however long its transaction takes, its rows start right after the commit.

Times are those of the database's clock: `started_at` of the row, and clock_timestamp() on the producer's connection after COMMIT.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from cluster.embedded import EmbeddedPostgres
from cluster.migration import migrate_schema
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, running_node, wait_for, wait_until
from tests.support.postgres import RunServer, make_run_folder

SOURCE = """
from cluster import Job

class PromptJob(Job):
    max_concurrency = None
    note: str | None = None

    async def perform(self):
        pass
"""
PROMPT = 0.5
"""Seconds from the commit to the start that nobody takes for a look by the clock, which is 1.1 s away or more."""
LONGEST_LOOK = 2.5
"""Seconds from the commit to the start of a row that nobody was told of: a look every 1.1 to 1.9 s, and some patience."""
WATCHERS = """SELECT array_agg(pid) FROM pg_locks JOIN pg_database AS d ON d.oid = database AND datname = current_database()
    WHERE locktype = 'advisory' AND classid = 1751 AND mode = 'ExclusiveLock' AND granted
    AND objid = coalesce(%s::regclass::oid, objid)"""
LOCK = "SELECT pg_advisory_xact_lock_shared(1751, 'prompt_jobs'::regclass::oid::integer)"


@pytest.fixture(scope="module")
def node(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node for the tests of this module, on a database of its own."""
    folder = tmp_path_factory.mktemp("doorbell") / "app"
    with run_server.database(run_server.template()) as url, running_node(url, folder, SOURCE, processes=1) as node:
        yield node


@pytest.fixture
def db(node: NodeProcess) -> Iterator[psycopg.Connection]:
    """A connection in autocommit; the table is empty and the node on watch."""
    with psycopg.connect(node.database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM prompt_jobs")  # TRUNCATE would lock the node out for a while
        wait_on_watch(connection)
        yield connection


@pytest.fixture
def producer(node: NodeProcess) -> Iterator[psycopg.Connection]:
    """A connection whose transactions last until they are committed."""
    with psycopg.connect(node.database_url) as connection:
        yield connection


def watchers(connection: psycopg.Connection, table: str | None = None) -> list[int]:
    """Pids of the sessions that are on watch for this table; None: for any."""
    row = connection.execute(WATCHERS.encode(), [table]).fetchone()
    return row[0] or [] if row else []


def wait_on_watch(connection: psycopg.Connection) -> None:
    wait_until(lambda: bool(watchers(connection)), "a node is on watch")


def take_doorbell(connection: psycopg.Connection, db: psycopg.Connection) -> None:
    """Takes the producers' lock for this transaction: the session of who is on watch is ended, and ours is next in line."""
    waiter = threading.Thread(target=connection.execute, args=[LOCK])
    waiter.start()
    mine = "SELECT count(*) > 0 FROM pg_locks WHERE classid = 1751 AND pid = %s"
    wait_for(db, mine, [connection.info.backend_pid])
    for pid in watchers(db):
        db.execute("SELECT pg_terminate_backend(%s)", [pid])
    waiter.join()


def now(connection: psycopg.Connection) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def committed(connection: psycopg.Connection) -> datetime:
    """Commits; when that was done, at the latest."""
    connection.commit()
    moment = now(connection)
    connection.commit()
    return moment


def start_of(connection: psycopg.Connection, note: str) -> datetime:
    """When the row with this note started; waits for it."""
    query = "SELECT max(started_at) FROM prompt_jobs WHERE note = %s AND status = 'succeeded'"
    moment: datetime = wait_for(connection, query, [note])
    return moment


def delay(connection: psycopg.Connection, note: str, since: datetime) -> float:
    return (start_of(connection, note) - since).total_seconds()


def insert(connection: psycopg.Connection, note: str) -> None:
    connection.execute("INSERT INTO prompt_jobs (note) VALUES (%s)", [note])


# --- ways to enqueue ---

Enqueue = Callable[[psycopg.Connection], object]


def by_copy(connection: psycopg.Connection) -> None:
    with connection.cursor().copy("COPY prompt_jobs (note) FROM STDIN") as copy:
        copy.write_row(["row"])


def by_merge(connection: psycopg.Connection) -> None:
    connection.execute(
        "MERGE INTO prompt_jobs USING (VALUES ('row')) AS v (note) ON prompt_jobs.note = v.note"
        " WHEN NOT MATCHED THEN INSERT (note) VALUES (v.note)"
    )


def by_cte(connection: psycopg.Connection) -> None:
    connection.execute(
        "WITH new AS (INSERT INTO prompt_jobs (note) VALUES ('row') RETURNING id) SELECT count(*) FROM new"
    )


def by_function(connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE OR REPLACE FUNCTION enqueue() RETURNS void LANGUAGE sql"
        " BEGIN ATOMIC INSERT INTO prompt_jobs (note) VALUES ('row'); END"
    )
    connection.execute("SELECT enqueue()")


def after_a_savepoint_rolled_back(connection: psycopg.Connection) -> None:
    """The first row's lock, or NOTIFY, goes with its savepoint."""
    with connection.transaction(force_rollback=True):
        insert(connection, "gone")
    insert(connection, "row")


def before_a_savepoint_rolled_back(connection: psycopg.Connection) -> None:
    insert(connection, "row")
    with connection.transaction(force_rollback=True):
        insert(connection, "gone")


def as_repeatable_read(connection: psycopg.Connection) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    insert(connection, "row")


def as_serializable(connection: psycopg.Connection) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    insert(connection, "row")


WAYS: list[Enqueue] = [
    by_copy,
    by_merge,
    by_cte,
    by_function,
    after_a_savepoint_rolled_back,
    before_a_savepoint_rolled_back,
    as_repeatable_read,
    as_serializable,
]


@pytest.mark.parametrize("enqueue", WAYS, ids=lambda enqueue: enqueue.__name__)
def test_whatever_enqueues_rings_who_is_on_watch(
    db: psycopg.Connection, producer: psycopg.Connection, enqueue: Enqueue
) -> None:
    enqueue(producer)
    assert delay(db, "row", committed(producer)) < PROMPT
    assert db.execute("SELECT count(*) FROM prompt_jobs").fetchone() == (1,)


@pytest.mark.parametrize("enqueue", WAYS, ids=lambda enqueue: enqueue.__name__)
def test_whatever_enqueues_keeps_nodes_awake_until_its_commit(
    node: NodeProcess, db: psycopg.Connection, producer: psycopg.Connection, enqueue: Enqueue
) -> None:
    with psycopg.connect(node.database_url) as first:
        take_doorbell(first, db)
        enqueue(producer)
    pause(0.3)  # many looks of a node that is awake, each of which would go on watch if it could
    assert watchers(db) == []
    assert delay(db, "row", committed(producer)) < PROMPT
    wait_on_watch(db)


def test_rows_that_are_written_as_a_replica_wait_for_the_next_look(
    db: psycopg.Connection, producer: psycopg.Connection
) -> None:
    producer.execute("SET session_replication_role = replica")
    insert(producer, "row")
    assert delay(db, "row", committed(producer)) < LONGEST_LOOK


# --- long transactions ---


def test_a_transaction_held_open_holds_up_nothing_and_keeps_no_node_busy(
    node: NodeProcess, db: psycopg.Connection, producer: psycopg.Connection
) -> None:
    """Begun while nobody is on watch, it holds the doorbell: the node stays awake, and looks every 10 ms."""
    take_doorbell(producer, db)
    insert(producer, "long")
    spent, since = cpu_seconds(node.pid), time.monotonic()
    for number in range(20):
        insert(db, f"short {number}")
        assert delay(db, f"short {number}", now(db)) < PROMPT
        pause(0.1)
    share = (cpu_seconds(node.pid) - spent) / (time.monotonic() - since)
    assert watchers(db) == []
    assert delay(db, "long", committed(producer)) < PROMPT
    assert share < 0.5, f"the coordinator took {share:.0%} of a CPU"
    print(f"{share:.1%} of a CPU while a transaction was open")
    wait_on_watch(db)


def test_a_transaction_that_will_ring_lets_nodes_sleep(db: psycopg.Connection, producer: psycopg.Connection) -> None:
    """Begun while a node is on watch, it notifies at its commit."""
    insert(producer, "long")
    insert(db, "short")
    assert delay(db, "short", now(db)) < PROMPT
    assert watchers(db)
    assert delay(db, "long", committed(producer)) < PROMPT


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pause(seconds: float) -> None:
    """Time itself is what is tested: nothing happens that could be waited for."""
    threading.Event().wait(seconds)


# --- two-phase commit ---


@pytest.fixture(scope="module")
def two_phase_url(pg_bin: Path) -> Iterator[str]:
    """A server that knows prepared transactions."""
    folder = make_run_folder()
    server = EmbeddedPostgres(folder / "data", pg_bin, fast=True, settings={"max_prepared_transactions": "10"})
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            migrate_schema(connection)
        yield server.url()
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_phase(two_phase_url: str, tmp_path: Path) -> Iterator[psycopg.Connection]:
    """A connection in autocommit to a database with prepared transactions; a node is on watch."""
    with (
        running_node(two_phase_url, tmp_path / "app", SOURCE, setup="DELETE FROM prompt_jobs", processes=1),
        psycopg.connect(two_phase_url, autocommit=True) as connection,
    ):
        wait_on_watch(connection)
        yield connection


def test_a_transaction_that_has_rung_cannot_be_prepared(two_phase: psycopg.Connection, two_phase_url: str) -> None:
    with psycopg.connect(two_phase_url) as producer:
        insert(producer, "row")
        with pytest.raises(errors.FeatureNotSupported, match="NOTIFY"):
            producer.execute("PREPARE TRANSACTION 'rung'")
    assert two_phase.execute("SELECT count(*) FROM prompt_jobs").fetchone() == (0,)


def test_a_prepared_insert_keeps_nodes_awake_until_it_is_committed(
    two_phase: psycopg.Connection, two_phase_url: str
) -> None:
    with psycopg.connect(two_phase_url) as producer:
        take_doorbell(producer, two_phase)
        insert(producer, "prepared")
        producer.execute("PREPARE TRANSACTION 'held'")
    insert(two_phase, "short")
    assert delay(two_phase, "short", now(two_phase)) < PROMPT
    pause(0.3)
    assert watchers(two_phase) == []
    two_phase.execute("COMMIT PREPARED 'held'")
    assert delay(two_phase, "prepared", now(two_phase)) < PROMPT
    wait_on_watch(two_phase)


def test_an_insert_as_a_replica_can_always_be_prepared(two_phase: psycopg.Connection, two_phase_url: str) -> None:
    with psycopg.connect(two_phase_url) as producer:
        producer.execute("SET LOCAL session_replication_role = replica")
        insert(producer, "row")
        producer.execute("SET LOCAL session_replication_role = origin")
        producer.execute("PREPARE TRANSACTION 'silent'")
    two_phase.execute("COMMIT PREPARED 'silent'")
    assert delay(two_phase, "row", now(two_phase)) < LONGEST_LOOK


# --- who is on watch has no room, or is gone ---

ROOM_SOURCE = """
import asyncio, time
from cluster import Job

class PromptJob(Job):
    max_concurrency = None
    seconds: float = 0.0

    async def perform(self):
        await asyncio.sleep(self.seconds)

class SyncJob(Job):
    max_concurrency = None
    seconds: float = 0.0

    def perform(self):
        time.sleep(self.seconds)

class LimitedJob(Job):
    max_concurrency = 1
    seconds: float = 0.0

    async def perform(self):
        await asyncio.sleep(self.seconds)
"""
TABLES = {"prompt_jobs", "sync_jobs", "limited_jobs"}
LONG = 5.0
"""Seconds that a job takes whose end nothing here may wait for."""
OTHERS_SLEEP = """SELECT bool_and(state = 'idle' AND query LIKE '%%pg_try_advisory_lock(%%' AND query_start > %s)
    FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobcluster doorbell' AND pid <> ALL (%s)"""


def run_two(conn: psycopg.Connection, run_node: RunNode, *queues: str) -> tuple[NodeProcess, NodeProcess]:
    """Nodes with one process each: one that is on watch for every table, then one that is not, and has just fallen asleep."""
    first = run_node(ROOM_SOURCE, processes=1, queues=queues[0] if queues else "*")
    wait_until(lambda: watched(conn) == TABLES, "the first node is on watch")
    second = run_node(ROOM_SOURCE, processes=1, queues=queues[-1] if queues else "*")
    wait_others_asleep(conn)
    return first, second


def watched(conn: psycopg.Connection) -> set[str]:
    """Tables for which somebody is on watch."""
    return {table for table in TABLES if watchers(conn, table)}


def wait_others_asleep(conn: psycopg.Connection, since: datetime | None = None) -> None:
    """Until who is not on watch has found somebody there, since then (None: from now on).

    It sleeps now, and looks by itself 1.1 s later at the earliest.
    """
    wait_for(conn, OTHERS_SLEEP, [since or now(conn), watchers(conn)])


def put(conn: psycopg.Connection, insert: str) -> tuple[list[int], datetime]:
    """Ids of the rows, and when they were committed, at the latest."""
    rows = conn.execute(f"{insert} RETURNING id".encode()).fetchall()
    return [row[0] for row in rows], now(conn)


def delays(conn: psycopg.Connection, table: str, ids: list[int], since: datetime) -> list[float]:
    """Seconds until each of the rows has started."""
    query = f"SELECT min(started_at) FROM {table} WHERE id = %s"
    return [(wait_for(conn, query, [job_id]) - since).total_seconds() for job_id in ids]


def test_rows_of_a_queue_start_promptly_on_a_node_that_is_not_on_watch(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_two(conn, run_node, "here", "there")
    on_watch = watchers(conn)
    for _ in range(3):
        ids, since = put(conn, "INSERT INTO prompt_jobs (queue) VALUES ('there')")
        assert delays(conn, "prompt_jobs", ids, since)[0] < PROMPT
        assert watchers(conn) == on_watch, "a row that is not for the watcher does not end its watch"
        wait_others_asleep(conn)


def test_a_node_that_stops_hands_its_watch_over(conn: psycopg.Connection, run_node: RunNode) -> None:
    first, _ = run_two(conn, run_node)
    on_watch = watchers(conn)
    first.terminate()
    wait_until(lambda: not set(watchers(conn)) & set(on_watch), "the first node is off watch")
    ids, since = put(conn, "INSERT INTO prompt_jobs DEFAULT VALUES")
    assert delays(conn, "prompt_jobs", ids, since)[0] < PROMPT
    assert first.wait_exit() == 0


def test_who_left_the_watch_in_a_burst_calls_when_it_is_full(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_two(conn, run_node)

    def given_up() -> bool:
        conn.execute(
            "SELECT pg_notify('cluster_doorbell', 'sync_jobs'::regclass::oid || ' ' || n) FROM generate_series(1, 500) n"
        )
        return not watchers(conn, "sync_jobs")

    wait_until(given_up, "the node on watch is rung so often that it leaves")
    assert watchers(conn, "prompt_jobs"), "for the other tables it stays"
    ids, since = put(conn, f"INSERT INTO sync_jobs (seconds) VALUES ({LONG}), ({LONG})")
    assert max(delays(conn, "sync_jobs", ids, since)) < PROMPT
    assert conn.execute("SELECT count(DISTINCT locked_by) FROM sync_jobs").fetchone() == (2,)


def test_async_rows_start_promptly_beside_a_sync_job_that_waits_for_a_whole_worker(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    """Full for one type only, a node stays on watch for the rest."""
    run_node(ROOM_SOURCE, processes=2)
    for _ in range(2):  # one in each process
        ids, since = put(conn, f"INSERT INTO prompt_jobs (seconds) VALUES ({LONG})")
        delays(conn, "prompt_jobs", ids, since)
    put(conn, "INSERT INTO sync_jobs DEFAULT VALUES")
    for _ in range(3):
        wait_until(lambda: watched(conn) == {"prompt_jobs", "limited_jobs"}, "another node could take the sync job")
        ids, since = put(conn, "INSERT INTO prompt_jobs DEFAULT VALUES")
        assert delays(conn, "prompt_jobs", ids, since)[0] < PROMPT
        wait_for(conn, "SELECT status = 'succeeded' FROM prompt_jobs WHERE id = %s", ids)
    assert conn.execute("SELECT status::text FROM sync_jobs").fetchone() == ("not_started",)


def test_a_limited_job_that_ends_on_a_node_not_on_watch_makes_room_at_once(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    """It knew of nothing that waits, and who is on watch knew of no room."""
    run_two(conn, run_node, "here", "here,there")
    ids, since = put(conn, "INSERT INTO limited_jobs (queue, seconds) VALUES ('there', 0.5)")
    delays(conn, "limited_jobs", ids, since)
    wait_others_asleep(conn, since)
    waiting, inserted = put(conn, "INSERT INTO limited_jobs (queue) VALUES ('here')")
    ended = wait_for(conn, "SELECT finished_at FROM limited_jobs WHERE id = %s", ids)
    assert delays(conn, "limited_jobs", waiting, max(ended, inserted))[0] < PROMPT


# --- several types ---


def perform_one(conn: psycopg.Connection) -> None:
    """A job from its INSERT to its end."""
    ids, _ = put(conn, "INSERT INTO prompt_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM prompt_jobs WHERE id = %s", ids)


def scans(conn: psycopg.Connection, table: str) -> int:
    """How often an index of this table was scanned; servers count late."""
    conn.execute("SELECT pg_stat_clear_snapshot()")
    row = conn.execute("SELECT idx_scan FROM pg_stat_user_tables WHERE relname = %s", [table]).fetchone()
    assert row is not None
    return int(row[0])


def test_a_busy_node_does_not_look_where_nothing_comes(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(ROOM_SOURCE)
    wait_on_watch(conn)
    began, before = now(conn), scans(conn, "sync_jobs")
    for _ in range(300):
        perform_one(conn)
    seconds = (now(conn) - began).total_seconds()
    wait_until(lambda: scans(conn, "prompt_jobs") > 300, "the server has counted the looks")
    assert scans(conn, "sync_jobs") - before < 10 * (seconds + 5), "a look a second, of a few scans each"


def test_a_node_that_starts_among_busy_tables_goes_on_watch_for_the_others(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    assert run_node(ROOM_SOURCE).stop() == 0  # there are tables now
    conn.execute("INSERT INTO prompt_jobs (seconds) SELECT 0.05 FROM generate_series(1, 20000)")
    run_node(ROOM_SOURCE)
    wait_until(lambda: watched(conn) >= {"limited_jobs", "sync_jobs"}, "the node is on watch where nothing waits")
    for _ in range(5):
        ids, since = put(conn, "INSERT INTO limited_jobs (priority) VALUES (1)")
        assert delays(conn, "limited_jobs", ids, since)[0] < 4 * PROMPT, (
            "it waits for a slot, the backlog takes far longer"
        )
    assert conn.execute("SELECT count(*) > 0 FROM prompt_jobs WHERE status = 'not_started'").fetchone() == (True,)


def test_rows_that_fall_due_start_on_time_on_a_node_that_is_busy_elsewhere(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(ROOM_SOURCE)
    wait_on_watch(conn)
    for _ in range(3):
        ids, since = put(conn, "INSERT INTO limited_jobs (run_at) VALUES (now() + interval '300 ms')")
        started = "SELECT started_at IS NOT NULL FROM limited_jobs WHERE id = %s"
        while conn.execute(started, ids).fetchone() != (True,):
            perform_one(conn)
        assert delays(conn, "limited_jobs", ids, since)[0] < 0.3 + PROMPT


# --- ten thousand inserts ---

CONNECTIONS, ROUNDS, PER_ROUND = 16, 25, 400
LATEST = 1.5


@pytest.mark.exhaustive
def test_no_row_of_10000_starts_late(
    conn: psycopg.Connection, run_node: RunNode, record_property: Callable[[str, object], None]
) -> None:
    """Single inserts at random moments; transactions last 0 to 50 ms, some 500 ms; nodes fall asleep in the pauses."""
    nodes = [run_node(SOURCE, processes=1) for _ in range(4)]
    seed = random.randrange(2**32)
    commits = asyncio.run(produce(nodes[0].database_url, random.Random(seed)))
    wait_for(conn, "SELECT count(*) = 0 FROM prompt_jobs WHERE status <> 'succeeded'", timeout=30)
    starts: dict[int, datetime] = dict(conn.execute("SELECT id, started_at FROM prompt_jobs").fetchall())
    assert starts.keys() == commits.keys()
    assert len(starts) == ROUNDS * PER_ROUND
    delays = sorted((starts[job_id] - commits[job_id]).total_seconds() for job_id in starts)
    rings = sum(node.metrics()["cluster_doorbell_rings_total"] for node in nodes)
    median, p99, worst = (1000 * each for each in (statistics.median(delays), delays[-len(delays) // 100], delays[-1]))
    figures = f"p50 {median:.1f}, p99 {p99:.1f}, max {worst:.1f} ms"
    record_property("commit to start", figures)
    print(f"commit to start: {figures}; {rings:g} rings")
    assert rings > 2 * ROUNDS, "nodes fell asleep"
    assert delays[-1] < LATEST, f"seed {seed}: {figures}"


async def produce(url: str, chance: random.Random) -> dict[int, datetime]:
    """Inserts in rounds. Returns for each row when it was committed, at the latest."""
    commits: dict[int, datetime] = {}
    connections = [await psycopg.AsyncConnection.connect(url) for _ in range(CONNECTIONS)]
    for _ in range(ROUNDS):
        left = iter(range(PER_ROUND))
        await asyncio.gather(*(produce_some(connection, chance, left, commits) for connection in connections))
        await asyncio.sleep(chance.uniform(0, 0.4))
    for connection in connections:
        await connection.close()
    return commits


async def produce_some(
    connection: psycopg.AsyncConnection, chance: random.Random, left: Iterator[int], commits: dict[int, datetime]
) -> None:
    for _ in left:
        await asyncio.sleep(chance.uniform(0, 0.02))
        cursor = await connection.execute("INSERT INTO prompt_jobs DEFAULT VALUES RETURNING id")
        row = await cursor.fetchone()
        await asyncio.sleep(0.5 if chance.random() < 0.01 else chance.uniform(0, 0.05))
        await connection.commit()
        moment = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
        await connection.commit()
        assert row is not None
        assert moment is not None
        commits[row[0]] = moment[0]
