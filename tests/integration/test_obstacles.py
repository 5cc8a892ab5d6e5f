"""A constraint, an index, a trigger or a lock of the user's is in the way of one statement: it costs the rows that it is about."""

from __future__ import annotations

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import (
    cpu_seconds,
    insert,
    others_go_on,
    refuse,
    refuse_no_more,
    run,
    wait_status,
    wait_trouble,
)

SOURCE = """
import asyncio, os
from cluster import Job

class Labelled(Job):
    label: str = ""
    key: int | None = None
    max_attempts = 3
    max_concurrency = None

    async def perform(self):
        os.write(1, f"begin {self.id}\\n".encode())
        if self.label.startswith("slow"):
            await asyncio.sleep(float(self.label.split()[1]))
        while self.label == "until over" and not os.path.exists("over"):
            await asyncio.sleep(0.02)

class OddJob(Labelled): ...
class LimitedJob(Labelled):
    max_concurrency = 2
class FirstJob(Labelled): ...
class GoodJob(Labelled): ...
class WorseJob(Labelled):
    priority = 70
"""
QUICK = {"heartbeat_interval": "500ms", "lease": "3s", "poll_interval": "500ms"}


# --- promote ---

PROMOTION_OBSTACLES = {
    "check": (
        "ALTER TABLE odd_jobs ADD CONSTRAINT no CHECK (status <> 'not_started' OR label <> 'bad')",
        "ALTER TABLE odd_jobs DROP CONSTRAINT no",
    ),
    "index": (
        "CREATE UNIQUE INDEX no ON odd_jobs ((1)) WHERE status = 'not_started' AND label = 'bad'",
        "DROP INDEX no",
    ),
}


@pytest.mark.parametrize("kind", PROMOTION_OBSTACLES)
def test_a_row_that_cannot_be_promoted_waits_alone_until_it_can(
    kind: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    obstacle, removal = PROMOTION_OBSTACLES[kind]
    node = run_node(SOURCE, setup="INSERT INTO cluster.queues VALUES ('held', now())", **QUICK)
    run(conn, obstacle)
    if kind == "index":  # there is one already, and it stays
        insert(conn, "odd_jobs", "bad", queue="held")
    soon = (
        "INSERT INTO odd_jobs (label, run_at) SELECT label, now() + '300 ms' FROM unnest(%s::text[]) label RETURNING id"
    )
    ids = [job_id for (job_id,) in run(conn, soon, ["", "bad", *[""] * 10])]
    bad = ids.pop(1)
    wait_status(conn, "odd_jobs", "succeeded", ids, timeout=3)
    wait_trouble(node, "promotion_refused")
    assert run(conn, "SELECT status::text, attempts_count FROM odd_jobs WHERE id = %s", bad) == [("scheduled", 0)]
    others_go_on(conn, "good_jobs", "odd_jobs")
    run(conn, removal)
    wait_status(conn, "odd_jobs", "succeeded", [bad], timeout=40)
    wait_trouble(node, "promotion_refused", there=False)
    assert node.stop() == 0


# --- claim and finish ---


@pytest.mark.parametrize("code", ["57014", "53000", "08006", "0A000"])
@pytest.mark.parametrize("status", ["running", "succeeded"])
def test_a_row_under_a_limit_that_raises_costs_that_row(
    status: str, code: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    """Whatever the code may mean elsewhere. Jobs under a full limit are ended and claimed in one statement."""
    node = run_node(SOURCE, **QUICK)
    refuse(conn, "limited_jobs", f"NEW.label = 'bad' AND NEW.status = '{status}'", code)
    ids = insert(conn, "limited_jobs", *[""] * 5, "bad", *[""] * 30)
    bad = ids.pop(5)
    wait_status(conn, "limited_jobs", "succeeded", ids, timeout=10)
    others_go_on(conn, "good_jobs", "limited_jobs")
    assert run(conn, "SELECT status <> 'succeeded' FROM limited_jobs WHERE id = %s", bad) == [(True,)]
    assert run(conn, "SELECT DISTINCT attempts_count FROM limited_jobs WHERE id <> %s", bad) == [(1,)]
    assert not node.log("database_away"), "no session was in doubt"
    assert node.stop() == 0


@pytest.mark.parametrize("table", ["odd_jobs", "limited_jobs"])
def test_rows_of_a_key_of_which_one_may_run_do_so_one_after_the_other(
    table: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, setup=f"CREATE UNIQUE INDEX one_runs ON {table} (key) WHERE status = 'running'", **QUICK)
    with conn.transaction():
        first = insert(conn, table, "slow 4", key=1)
        second = insert(conn, table, "", "", key=1)
        other_key = insert(conn, table, "", key=2)
    wait_status(conn, table, "succeeded", other_key, timeout=2)
    cpu, lines = cpu_seconds(node.pid), len(node.log())
    others_go_on(conn, "good_jobs", "worse_jobs", timeout=1)
    wait_status(conn, table, "running", first)
    wait_status(conn, table, "succeeded", [*first, *second])
    assert cpu_seconds(node.pid) - cpu < 1.0, "it was tried again and again"
    assert len(node.log()) - lines < 10, node.log()[lines:]
    assert run(conn, f"SELECT DISTINCT attempts_count FROM {table}") == [(1,)]
    assert node.stop() == 0


AUDIT = """
    CREATE TABLE job_audit (id bigint, status text);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO job_audit (id, status) VALUES (NEW.id, NEW.status); RETURN NULL; END$$;
    CREATE TRIGGER audit AFTER UPDATE ON odd_jobs FOR EACH ROW EXECUTE FUNCTION audit()
"""


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("DROP TABLE job_audit", "CREATE TABLE job_audit (id bigint, status text)"),
        ("ALTER TABLE job_audit DROP COLUMN status", "ALTER TABLE job_audit ADD COLUMN status text"),
    ],
    ids=["42P01", "42703"],
)
def test_a_trigger_whose_table_is_broken_costs_no_job_its_outcome_and_none_runs_twice(
    broken: str, mended: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, setup=AUDIT, **QUICK)
    slow = insert(conn, "odd_jobs", *["slow 3"] * 5)
    quick = insert(conn, "odd_jobs", *["slow 0.5"] * 5)
    wait_status(conn, "odd_jobs", "running", [*slow, *quick])
    run(conn, broken)
    waiting = insert(conn, "odd_jobs", *[""] * 5)
    wait_for(conn, "SELECT clock_timestamp() > max(started_at) + interval '5 seconds' FROM odd_jobs")  # all have ended
    others_go_on(conn)
    assert not node.log("claims_gone"), "running jobs were stopped"
    run(conn, mended)
    wait_status(conn, "odd_jobs", "succeeded", [*slow, *quick, *waiting], timeout=60)
    assert run(conn, "SELECT DISTINCT attempts_count FROM odd_jobs") == [(1,)]
    begun = [line for line in node.output().splitlines() if int(line.split()[1]) in [*slow, *quick, *waiting]]
    assert len(begun) == len(set(begun)) + 1, begun  # good_jobs has an id of its own that is also one of these
    assert node.stop() == 0


def test_outcomes_that_are_refused_stop_the_claims_of_their_type_only(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    """One line each would be 6,000, and so many outcomes would be kept in memory."""
    node = run_node(SOURCE, **QUICK)
    refuse(conn, "odd_jobs", "OLD.status = 'running'", "55000")
    run(conn, "INSERT INTO odd_jobs (label) SELECT '' FROM generate_series(1, 6000)")
    wait_trouble(node, "table_refuses_outcomes")
    for _ in range(5):
        others_go_on(conn, timeout=2)
    assert run(conn, "SELECT count(*) <= 2000 FROM odd_jobs WHERE status <> 'not_started'") == [(True,)]
    assert len(node.log()) < 60
    refuse_no_more(conn, "odd_jobs")
    wait_for(conn, "SELECT bool_and(status = 'succeeded' AND attempts_count = 1) FROM odd_jobs", timeout=60)
    assert node.stop() == 0


# --- what takes long ---

SLOW = """
CREATE FUNCTION take_long_{table}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END$$;
CREATE TRIGGER take_long BEFORE UPDATE ON {table} FOR EACH ROW WHEN (NEW.status = '{status}')
EXECUTE FUNCTION take_long_{table}()
"""


def test_a_trigger_that_takes_long_costs_its_own_type(conn: psycopg.Connection, run_node: RunNode) -> None:
    """At a claim, at an outcome, at a promotion; each longer than a statement may take."""
    node = run_node(SOURCE, **QUICK)
    for table, status in (("odd_jobs", "running"), ("limited_jobs", "succeeded"), ("first_jobs", "not_started")):
        run(conn, SLOW.format(table=table, status=status, seconds=30))
    insert(conn, "odd_jobs", *[""] * 20)
    insert(conn, "limited_jobs", *[""] * 20)
    run(conn, "INSERT INTO first_jobs (run_at) SELECT now() + '300 ms' FROM generate_series(1, 20)")
    for job_type in ("OddJob", "LimitedJob", "FirstJob"):
        wait_trouble(node, "too_slow", job_type)
    others_go_on(conn, timeout=8)  # what was tried side by side is over
    for _ in range(5):
        others_go_on(conn, "good_jobs", "worse_jobs", timeout=1)
    assert not node.log("database_away"), "the server was never silent"
    assert node.stop() == 0


def test_a_trigger_that_takes_some_time_for_each_row_gets_fewer_rows_at_once(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, **QUICK)
    run(conn, SLOW.format(table="odd_jobs", status="running", seconds=0.05))
    run(conn, SLOW.format(table="worse_jobs", status="succeeded", seconds=0.05))
    ids = {table: insert(conn, table, *[""] * 100) for table in ("odd_jobs", "worse_jobs")}
    for table, inserted in ids.items():
        wait_status(conn, table, "succeeded", inserted, timeout=40)
        assert run(conn, f"SELECT DISTINCT attempts_count FROM {table}") == [(1,)]
    assert not node.log("trouble_began")
    assert node.stop() == 0


# --- release and rescue ---


@pytest.mark.parametrize("condition", ["NEW.status = 'not_started'", "true"], ids=["release", "everything"])
def test_a_row_that_cannot_be_released_costs_a_drain_that_row(
    condition: str, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, shutdown_timeout="6s", **QUICK)
    ids = insert(conn, "odd_jobs", *["until over"] * 4, "bad")  # the last one is quick
    wait_status(conn, "odd_jobs", "succeeded", ids[4:])
    run(conn, "UPDATE odd_jobs SET label = 'bad' WHERE id = %s", ids[1])
    wait_status(conn, "odd_jobs", "running", ids[:4])
    refuse(conn, "odd_jobs", f"NEW.label = 'bad' AND OLD.status = 'running' AND {condition}")
    assert node.stop() == 0
    released = [ids[0], *ids[2:4]]
    assert run(conn, "SELECT DISTINCT status::text, attempts_count FROM odd_jobs WHERE id = ANY (%s)", released) == [
        ("not_started", 0)
    ]
    refuse_no_more(conn, "odd_jobs")
    run(conn, "UPDATE odd_jobs SET label = '' WHERE status <> 'succeeded'")
    run_node(SOURCE, **QUICK)
    wait_status(conn, "odd_jobs", "succeeded", ids, timeout=30)


def test_a_row_that_cannot_be_rescued_keeps_no_other_from_it(conn: psycopg.Connection, run_node: RunNode) -> None:
    dead = run_node(SOURCE, **QUICK)
    ids = insert(conn, "odd_jobs", *["slow 60"] * 8)
    wait_status(conn, "odd_jobs", "running", ids)
    run(conn, "UPDATE odd_jobs SET label = CASE WHEN id = %s THEN 'bad' ELSE '' END", ids[3])
    refuse(conn, "odd_jobs", "NEW.label = 'bad'", "55000")
    node = run_node(SOURCE, **QUICK)
    dead.kill()
    bad = ids.pop(3)
    wait_status(conn, "odd_jobs", "succeeded", ids, timeout=20)
    others_go_on(conn)
    assert run(conn, "SELECT status::text FROM odd_jobs WHERE id = %s", bad) == [("running",)]
    refuse_no_more(conn, "odd_jobs")
    wait_status(conn, "odd_jobs", "succeeded", [bad], timeout=40)
    assert node.stop() == 0


def test_orphans_that_fill_a_limit_and_whose_duplicates_wait_are_rescued(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    """The orphans can't wait beside their duplicates, which can't be claimed beside the orphans."""
    index = "CREATE UNIQUE INDEX one_waits ON limited_jobs (key) WHERE status = 'not_started'"
    dead = run_node(SOURCE, setup=index, **QUICK)
    orphans = [*insert(conn, "limited_jobs", "slow 60", key=1), *insert(conn, "limited_jobs", "slow 60", key=2)]
    wait_status(conn, "limited_jobs", "running", orphans)
    run(conn, "UPDATE limited_jobs SET label = ''")
    duplicates = [*insert(conn, "limited_jobs", "", key=1), *insert(conn, "limited_jobs", "", key=2)]
    node = run_node(SOURCE, **QUICK)
    dead.kill()
    wait_status(conn, "limited_jobs", "succeeded", duplicates, timeout=40)
    wait_status(conn, "limited_jobs", "succeeded", orphans, timeout=40)
    others_go_on(conn, "good_jobs", "limited_jobs")
    assert node.stop() == 0


def test_a_locked_table_keeps_no_other_tables_jobs_from_being_rescued(
    conn: psycopg.Connection, run_node: RunNode, database_url: str
) -> None:
    dead = run_node(SOURCE, **QUICK)
    tables = ("first_jobs", "good_jobs", "limited_jobs", "odd_jobs", "worse_jobs")
    ids = {table: insert(conn, table, "slow 60") for table in tables}
    for table in tables:
        wait_status(conn, table, "running", ids[table])
        run(conn, f"UPDATE {table} SET label = ''")
    node = run_node(SOURCE, **QUICK)
    with psycopg.connect(database_url) as other:
        run(other, "LOCK TABLE first_jobs, good_jobs IN ACCESS EXCLUSIVE MODE")
        dead.kill()
        for table in tables[2:]:
            wait_status(conn, table, "succeeded", ids[table], timeout=15)
    for table in tables[:2]:
        wait_status(conn, table, "succeeded", ids[table], timeout=15)
    assert node.stop() == 0
