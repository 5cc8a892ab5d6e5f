"""`cluster.why` names the true cause first: in situations made with SQL where they are just rows, and with nodes where not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from cluster import secret
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until
from tests.support.postgres import RunServer
from tests.support.rows import run

NODE, OTHER = UUID(int=1), UUID(int=2)
TABLES = """
DROP TABLE IF EXISTS mail_jobs, order_jobs;
TRUNCATE cluster.job_types, cluster.turns, cluster.queues, cluster.nodes, cluster.drains, cluster.audit, cluster.schedules;
SELECT cluster.create_job_table('mail_jobs');
ALTER TABLE mail_jobs ADD COLUMN label text;
UPDATE cluster.job_types SET max_concurrency = NULL;
"""
KEYED = """
SELECT cluster.create_job_table('order_jobs');
ALTER TABLE order_jobs ADD COLUMN customer integer;
SELECT cluster.create_job_table('order_jobs', 'customer');
"""
RUNNING = """
UPDATE mail_jobs SET status = 'running', attempts_count = 1, locked_by = %s, locked_at = now() - interval '3 min',
    started_at = now() - interval '3 min' WHERE id = ANY (%s)
"""
ENDED = "UPDATE mail_jobs SET status = %s, run_at = now() + %s::interval, attempts_count = %s, started_at = now(), last_error = %s"


class Reason(NamedTuple):
    rank: int
    reason: str
    detail: str
    remedy: str


class Place:
    """A database with a job table, which has one job, and the hands to make a situation of it."""

    def __init__(self, url: str, connection: psycopg.Connection, others: ExitStack) -> None:
        self._url = url
        self.connection = connection
        self._others = others
        self.sql(TABLES)

    def sql(self, text: str, *values: object) -> list[Any]:
        return run(self.connection, text, *values)

    def other_session(self, text: str) -> psycopg.Connection:
        """One that has begun, run this, and not ended."""
        other = self._others.enter_context(psycopg.connect(self._url))
        other.execute(text.encode())
        return other

    def node(self, number: UUID = NODE, *, lease: str = "1 h", state: str = "live", **columns: Any) -> None:
        """One that says of itself what is given."""
        values = {
            "jobs": ["mail_jobs"],
            "queues": ["*"],
            "slots": 10,
            "running": 0,
            "trouble": [],
            "work": [],
        } | columns
        self.sql(
            "INSERT INTO cluster.nodes (id, hostname, pid, version, lease_until, state, jobs, queues, slots, running, trouble,"
            " work) VALUES (%s, 'web-' || %s, 7, '1', now() + %s::interval, %s, %s, %s, %s, %s, %s, %s)",
            number, number.int, lease, state, values["jobs"], values["queues"], values["slots"], values["running"],
            Jsonb(values["trouble"]), Jsonb(values["work"]),
        )  # fmt: skip

    def jobs(self, count: int = 1, **columns: object) -> int:
        """Inserts them into mail_jobs; the id of the last."""
        names = "".join(f", {name}" for name in columns)
        values = "".join(", %s" for _ in columns)
        query = f"INSERT INTO mail_jobs (label{names}) SELECT NULL{values} FROM generate_series(1, %s) RETURNING id"
        return max(int(job_id) for (job_id,) in self.sql(query, *columns.values(), count))

    def why(self, table: str, job_id: int | None) -> list[Reason]:
        with self.connection.transaction():
            self.sql("SET TRANSACTION READ ONLY")
            return [Reason(*row) for row in self.sql("SELECT * FROM cluster.why(%s::regclass, %s)", table, job_id)]


@pytest.fixture(scope="module")
def shared_url(run_server: RunServer) -> Iterator[str]:
    with run_server.database(run_server.template()) as url:
        yield url


@pytest.fixture
def place(shared_url: str) -> Iterator[Place]:
    with psycopg.connect(shared_url, autocommit=True) as connection, ExitStack() as others:
        yield Place(shared_url, connection, others)


def trouble(reason: str, detail: str, rows: int = 0) -> list[dict[str, Any]]:
    return [{"job_type": "mail_jobs", "reason": reason, "detail": detail, "rows": rows, "since": 1.0}]


# --- situations: each makes one, and returns the id of the job that is asked about ---


def no_such_job(place: Place) -> int:
    return place.jobs() + 1


def not_committed(place: Place) -> int:
    place.other_session("INSERT INTO mail_jobs DEFAULT VALUES")
    return 1


def finished(place: Place) -> int:
    place.jobs()
    place.sql(ENDED, "failed", "0", 3, "Traceback\nValueError: no such customer\n")
    place.sql("UPDATE mail_jobs SET finished_at = now() - interval '5 min'")
    return 1


def running(place: Place) -> int:
    place.node()
    place.sql(RUNNING, NODE, [place.jobs()])
    return 1


def cancelling(place: Place) -> int:
    running(place)
    place.sql("SELECT cluster.cancel('mail_jobs', 1)")
    return 1


def node_lost(place: Place) -> int:
    place.node(lease="-20 s")
    place.sql(RUNNING, NODE, [place.jobs()])
    return 1


def not_due(place: Place) -> int:
    place.node()
    return place.jobs(run_at="2099-01-01")


def retry(place: Place) -> int:
    place.node()
    place.jobs()
    place.sql(ENDED, "retry", "5 min", 2, "Traceback\nTimeoutError: mail server\n")
    return 1


def snoozed(place: Place) -> int:
    place.node()
    place.jobs()
    place.sql(ENDED, "scheduled", "5 min", 0, None)
    return 1


def type_paused(place: Place) -> int:
    place.node()
    with place.connection.transaction():
        place.sql("SELECT cluster.pause('mail_jobs'::regclass, 'the mail server is away')")
        place.sql(
            "INSERT INTO cluster.audit (who, via, action, target) VALUES ('ann', 'dashboard', 'pause', 'mail_jobs')"
        )
    return place.jobs()


def queue_paused(place: Place) -> int:
    place.node()
    place.sql("SELECT cluster.pause('bulk', 'too loud')")
    return place.jobs(queue="bulk")


def everything_paused(place: Place) -> int:
    place.node()
    place.sql("SELECT cluster.pause(reason => 'moving')")
    return place.jobs()


def no_node(place: Place) -> int:
    place.node(state="stopped")
    return place.jobs()


def no_node_of_type(place: Place) -> int:
    place.node(jobs=["OtherJob"])
    return place.jobs()


def no_node_of_queue(place: Place) -> int:
    place.node(queues=["default", "mail"])
    return place.jobs(queue="bulk")


def nodes_draining(place: Place) -> int:
    place.node()
    place.node(OTHER, jobs=["OtherJob"])
    place.sql("SELECT cluster.drain('web-1', 'new disks')")
    place.sql("UPDATE cluster.nodes SET state = 'draining' WHERE id = %s", NODE)
    return place.jobs()


def nodes_silent(place: Place) -> int:
    place.node(lease="-20 s")
    return place.jobs()


def limit_full(place: Place) -> int:
    place.node(slots=100)
    place.sql("UPDATE cluster.job_types SET max_concurrency = 50, max_concurrency_override = 4")
    place.jobs(4)
    place.sql(RUNNING, NODE, [1, 2, 3, 4])
    return place.jobs()


def limit_zero(place: Place) -> int:
    place.node()
    place.sql("UPDATE cluster.job_types SET max_concurrency_override = 0")
    return place.jobs()


def key_full(place: Place) -> int:
    place.sql(KEYED)
    place.node(jobs=["order_jobs"])
    place.sql("UPDATE cluster.job_types SET max_concurrency = 1 WHERE name = 'order_jobs'")
    place.sql("INSERT INTO order_jobs (customer) VALUES (7), (8), (7)")
    place.sql(RUNNING.replace("mail_jobs", "order_jobs"), NODE, [1])
    place.sql("UPDATE order_jobs SET parked = true WHERE id = 3")
    return 3


def slots_busy(place: Place) -> int:
    place.node(running=10)
    return place.jobs()


def no_empty_worker(place: Place) -> int:
    """Two worker processes with 16 slots, and a job that takes one of them in each."""
    place.node(slots=32, running=2, work=[{"job_type": "mail_jobs", "slots": 16, "seconds": 9, "attempts": 5}])
    place.jobs(2)
    place.sql(RUNNING, NODE, [1, 2])
    return place.jobs()


def behind(place: Place) -> int:
    place.node(slots=10, running=10, work=[{"job_type": "mail_jobs", "slots": 1, "seconds": 0.25, "attempts": 100}])
    place.jobs(6000)
    place.jobs(6000, queue="bulk")
    return place.jobs(priority=60)


def row_locked(place: Place) -> int:
    place.node()
    place.jobs()
    place.other_session("SELECT FROM mail_jobs FOR UPDATE")
    return 1


def table_locked(place: Place) -> int:
    place.node()
    place.jobs()
    place.other_session("LOCK TABLE mail_jobs IN ACCESS EXCLUSIVE MODE")
    return 1


def index_being_built(place: Place) -> int:
    place.node()
    place.jobs()
    place.other_session("CREATE INDEX ON mail_jobs (label)")
    return 1


def another_first(place: Place) -> int:
    place.node(trouble=trouble("claim_refused", "row 2: duplicate key value violates unique constraint", 1))
    place.sql("CREATE UNIQUE INDEX one_at_a_time ON mail_jobs (label) WHERE status = 'running' AND queue <> 'free'")
    place.sql("INSERT INTO mail_jobs (label) VALUES ('a'), ('a')")
    place.sql(RUNNING, NODE, [1])
    return 2


def another_waits(place: Place) -> int:
    """A retry that is due would be the second that waits."""
    place.node()
    place.sql("CREATE UNIQUE INDEX one_waits ON mail_jobs (label) WHERE status IN ('scheduled', 'not_started')")
    place.sql("INSERT INTO mail_jobs (label, run_at) VALUES ('a', now() + interval '1 h')")
    place.sql(ENDED, "retry", "1 h", 1, "ValueError")
    place.sql("INSERT INTO mail_jobs (label) VALUES ('a')")
    place.sql("SET session_replication_role = replica")
    place.sql("UPDATE mail_jobs SET run_at = now() - interval '1 s' WHERE id = 1")
    place.sql("RESET session_replication_role")
    return 1


def row_set_aside(place: Place) -> int:
    place.node(trouble=trouble("claim_refused", "row 1: not this one", 1))
    return place.jobs()


def table_held(place: Place) -> int:
    place.node(trouble=trouble("no_privilege", "permission denied for table mail_jobs"))
    return place.jobs()


def differs(place: Place) -> int:
    place.node(trouble=trouble("table_missing", "mail_jobs is not there, or lacks a column"))
    return place.jobs()


def starting(place: Place) -> int:
    place.node()
    return place.jobs()


def nothing_known(place: Place) -> int:
    place.node()
    place.jobs()
    place.sql("UPDATE mail_jobs SET run_at = now() - interval '1 h'")
    return 1


def nothing_waits(place: Place) -> None:
    place.node()


SITUATIONS = [
    (no_such_job, "no_such_job", "has no job 2"),
    (not_committed, "not_committed", "idle in transaction"),
    (finished, "finished", "failed, 5 min ago, in attempt 3: ValueError: no such customer"),
    (running, "running", "attempt 1, on web-1:7, for 3 min"),
    (cancelling, "cancelling", "told to stop"),
    (node_lost, "node_lost", "on web-1:7, silent"),
    (not_due, "not_due", "2099-01-01"),
    (retry, "retry", "attempt 2 failed, TimeoutError: mail server"),
    (snoozed, "snoozed", "snoozed"),
    (type_paused, "type_paused", "by ann: the mail server is away"),
    (queue_paused, "queue_paused", "Queue bulk has been paused for 0 s: too loud"),
    (everything_paused, "everything_paused", "moving"),
    (no_node, "no_node", "the last one, web-1:7, stopped"),
    (no_node_of_type, "no_node_of_type", "none performs mail_jobs"),
    (
        no_node_of_queue,
        "no_node_of_queue",
        "No node serves queue bulk. mail_jobs is performed in other queues, by web-1:7",
    ),
    (nodes_draining, "nodes_draining", "web-1:7, told to drain 0 s ago: new disks"),
    (nodes_silent, "nodes_silent", "web-1:7"),
    (limit_full, "limit_full", "limit of 4 is reached: job 1 on web-1:7 for 3 min, job 2"),
    (limit_zero, "limit_zero", "is 0"),
    (key_full, "key_full", "for each customer, here 7, is reached: job 1 on web-1:7"),
    (slots_busy, "slots_busy", "All 10 slots"),
    (no_empty_worker, "slots_busy", "slots"),
    (behind, "behind", "10,000+ jobs of the type come before it, by priority and time, at about 40 a second"),
    (row_locked, "row_locked", "has this row locked"),
    (table_locked, "table_locked", "AccessExclusiveLock"),
    (index_being_built, "table_locked", "ShareLock"),
    (another_first, "another_first", "job 1 is it"),
    (another_waits, "another_first", "job 2 is it"),
    (row_set_aside, "row_set_aside", "not this one"),
    (table_held, "no_privilege", "permission denied for table mail_jobs"),
    (differs, "table_missing", "lacks a column"),
    (starting, "starting", "Nothing is in its way"),
    (nothing_known, "unknown", "ready for 60 min"),
    (nothing_waits, "nothing_waits", "public.mail_jobs"),
]


@pytest.mark.parametrize(("make", "reason", "words"), SITUATIONS, ids=[make.__name__ for make, *_ in SITUATIONS])
def test_the_true_cause_comes_first(place: Place, make: Any, reason: str, words: str) -> None:
    job_id = make(place)
    found = place.why("order_jobs" if make is key_full else "mail_jobs", job_id)
    assert [each.rank for each in found] == list(range(1, len(found) + 1))
    assert (found[0].reason, words in found[0].detail) == (reason, True), found
    assert all(each.detail and each.remedy for each in found)
    if make in {running, finished, starting, nothing_known, limit_full, not_due, retry}:
        assert len(found) == 1, found


def test_what_is_in_the_way_is_listed_in_the_order_in_which_it_is_to_be_mended(place: Place) -> None:
    place.sql("UPDATE cluster.job_types SET max_concurrency = 1")
    place.node(queues=["default"])
    place.jobs()
    place.sql(RUNNING, NODE, [1])
    place.sql("SELECT cluster.pause('mail_jobs'::regclass)")
    found = [each.reason for each in place.why("mail_jobs", place.jobs(queue="bulk"))]
    assert found == ["type_paused", "no_node_of_queue", "limit_full"]


def test_where_nothing_waits_the_schedules_say_what_will(place: Place) -> None:
    place.sql("INSERT INTO cluster.schedules (name, job_table, every) VALUES ('stock', 'mail_jobs', '1 h')")
    place.sql("UPDATE cluster.schedules SET paused_at = now() - interval '3 h', paused_reason = 'inventory'")
    found = place.why("mail_jobs", None)
    assert [each.reason for each in found] == ["nothing_waits", "schedule_paused", "no_node"]
    assert found[1].detail == "Schedule stock has been paused for 3 h: inventory"
    assert found[1].remedy == "cluster schedule resume stock"


def test_a_key_that_is_secret_is_masked(place: Place) -> None:
    job_id = key_full(place)
    place.sql(f"COMMENT ON COLUMN order_jobs.customer IS '{secret.MARK}'")
    detail = place.why("order_jobs", job_id)[0].detail
    assert "for each customer, here ******, is reached" in detail


def test_another_table_that_is_locked_keeps_no_answer(place: Place) -> None:
    place.sql(KEYED)
    work = [{"job_type": name, "slots": 16, "seconds": 1, "attempts": 1} for name in ("mail_jobs", "order_jobs")]
    place.node(slots=32, work=work)
    place.other_session("LOCK TABLE order_jobs")
    assert [each.reason for each in place.why("mail_jobs", place.jobs())] == ["starting"]


def test_every_reason_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.split("\n## Why does this job not run?\n", 1)[1].split("\n## ", 1)[0]
    assert {reason for _, reason, _ in SITUATIONS} <= set(re.findall(r"`(\w+)`", section))


# --- with nodes that run ---

SOURCE = """
import asyncio, os
from cluster import Job

class Held(Job):
    label: str = ""
    async def perform(self):
        while not os.path.exists("over"):
            await asyncio.sleep(0.02)

class LimitedJob(Held):
    max_concurrency = 1
class OddJob(Held): ...
class OneAtATimeJob(Held): ...
class LastJob(Held): ...
"""


def wait_first(conn: psycopg.Connection, table: str, reason: str) -> str:
    """Until this is the first reason of the oldest job; its detail."""
    query = "SELECT CASE WHEN reason = %s THEN detail END FROM cluster.why(%s::regclass) ORDER BY rank LIMIT 1"
    return str(wait_for(conn, query, [reason, table]))


def test_what_a_node_holds_refuses_and_leaves_comes_first(conn: psycopg.Connection, run_node: RunNode) -> None:
    node = run_node(SOURCE, heartbeat_interval="500ms", lease="3s", poll_interval="500ms", processes=1)
    ((name,),) = run(conn, "SELECT hostname || ':' || pid FROM cluster.nodes")
    run(conn, "INSERT INTO limited_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM limited_jobs")
    run(conn, "INSERT INTO limited_jobs DEFAULT VALUES")
    assert f"job 1 on {name}" in wait_first(conn, "limited_jobs", "limit_full")
    run(conn, "CREATE UNIQUE INDEX one ON one_at_a_time_jobs (label) WHERE status = 'running'")
    run(conn, "INSERT INTO one_at_a_time_jobs (label) VALUES ('a'), ('a')")
    wait_for(conn, "SELECT count(*) = 1 FROM one_at_a_time_jobs WHERE status = 'running'")
    assert "is it" in wait_first(conn, "one_at_a_time_jobs", "another_first")
    run(conn, "ALTER TABLE odd_jobs RENAME label TO words")
    run(conn, "INSERT INTO odd_jobs DEFAULT VALUES")
    assert "Nodes hold OddJob back" in wait_first(conn, "odd_jobs", "table_missing")
    run(conn, "ALTER TABLE odd_jobs RENAME words TO label")
    wait_for(conn, "SELECT status = 'running' FROM odd_jobs")
    run(conn, "SELECT cluster.drain(%s, 'new disks')", name)
    wait_until(lambda: node.get("/readyz") == 503, "it drains")
    run(conn, "INSERT INTO last_jobs DEFAULT VALUES")
    assert "new disks" in wait_first(conn, "last_jobs", "nodes_draining")
    run(conn, "SELECT cluster.undrain(id) FROM cluster.nodes")
    assert "attempt 1" in wait_for(conn, "SELECT detail FROM cluster.why('last_jobs', 1) WHERE reason = 'running'")
    (node.app_dir / "over").touch()
    wait_for(conn, "SELECT detail FROM cluster.why('last_jobs', 1) WHERE reason = 'finished'")


ENDED_ROWS = """
SET session_replication_role = replica;
INSERT INTO mail_jobs (status, finished_at, priority) SELECT 'succeeded', now(), 1 FROM generate_series(1, 200000);
INSERT INTO mail_jobs (queue) SELECT CASE n % 3 WHEN 0 THEN 'default' ELSE 'q' || n % 50 END FROM generate_series(1, 30000) n;
SET session_replication_role = origin
"""


def test_it_reads_a_bounded_part_of_a_large_table(place: Place) -> None:
    """Whatever the statistics say: here there are none."""
    place.node(running=10)
    place.sql(ENDED_ROWS)
    last = place.jobs(priority=90)
    assert place.why("mail_jobs", last)[0].reason == "behind"
    assert place.why("mail_jobs", None)[0].reason in {"behind", "slots_busy"}
    place.sql("SELECT pg_stat_force_next_flush()")
    ((scans,),) = place.sql("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'mail_jobs'")
    before = _rows_read(place)
    place.why("mail_jobs", last)
    place.why("mail_jobs", None)
    place.sql("SELECT pg_stat_force_next_flush()")
    assert place.sql("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'mail_jobs'") == [(scans,)]
    assert _rows_read(place) - before < 50_000


def _rows_read(place: Place) -> int:
    ((rows,),) = place.sql("SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables WHERE relname = 'mail_jobs'")
    return int(rows)
