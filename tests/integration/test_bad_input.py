"""What users do to rows and tables under a running node, and what keeps a node from starting.

Most tests share one node. Each has a job type of its own; `others_go_on` shows that the rest of the node does not mind.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import namedtuple_row

from cluster.migration import migrate_jobs
from tests.support.nodes import NodeProcess, job_classes, running_node, wait_for, wait_until, write_jobs
from tests.support.postgres import RunServer

GATE = 7
"""Advisory lock that jobs labelled `gated` wait for while a test holds it."""
UNLIMITED = (
    "Deleted", "Updated", "Truncated", "Dropped", "Renamed", "Refused", "RefusedWhole", "Finish", "FinishWhole", "Checked",
    "Touched", "LockedWaiting", "LockedRunning", "LockedTable", "Widened", "Retyped", "Narrowed", "Once", "Skipped",
    "Other",
)  # fmt: skip
LIMITED = ("OnceLimited", "RefusedLimited", "FinishLimited", "LockedWaitingLimited")
SOURCE = f"""
import os
import psycopg
from cluster import Job

class Labelled(Job):
    label: str = ""
    size: int = 0

async def pass_gate(self):
    if self.label == "gated":
        async with await psycopg.AsyncConnection.connect(os.environ["CLUSTER_DATABASE_URL"]) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock_shared({GATE})")
"""
SOURCE += "".join(
    f"\nclass {name}Job(Labelled):\n    max_concurrency = {limit}\n    perform = pass_gate\n"
    for names, limit in ((UNLIMITED, None), (LIMITED, 16))
    for name in names
)

# --- the shared node ---


@pytest.fixture(scope="module")
def node(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    setup = "SELECT cluster.create_job_table('foreign_jobs'); INSERT INTO foreign_jobs DEFAULT VALUES"
    with (
        run_server.database(run_server.template()) as url,
        running_node(
            url, tmp_path_factory.mktemp("app"), SOURCE, setup=setup, poll_interval="500ms", heartbeat_interval="1s"
        ) as shared,
    ):
        yield shared
        assert shared.stop() == 0


@pytest.fixture
def db(node: NodeProcess) -> Iterator[psycopg.Connection]:
    """A connection to the shared node's database. Its end opens the gate."""
    with psycopg.connect(node.database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def other(node: NodeProcess) -> Iterator[psycopg.Connection]:
    """Somebody's psql: not in autocommit, and in no hurry."""
    with psycopg.connect(node.database_url) as connection:
        yield connection
        connection.rollback()


def run(connection: psycopg.Connection, statement: str, *parameters: Any) -> Any:  # Any: the first value, of any type
    cursor = connection.execute(statement.encode(), parameters)
    row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def insert(connection: psycopg.Connection, table: str, *labels: str) -> list[int]:
    """One job for each label, in one statement."""
    statement = sql.SQL("INSERT INTO {} (label) SELECT unnest({}::text[]) RETURNING id").format(
        sql.Identifier(table), sql.Literal(list(labels))
    )
    return [job_id for (job_id,) in connection.execute(statement).fetchall()]


def job(connection: psycopg.Connection, table: str, job_id: int) -> Any:  # Any: its attributes are the table's columns
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        row = cursor.execute(sql.SQL("SELECT * FROM {} WHERE id = {}").format(sql.Identifier(table), job_id)).fetchone()
    assert row is not None, f"{table} has no row {job_id}"
    return row


def wait_status(connection: psycopg.Connection, table: str, status: str, *ids: int, timeout: float = 20) -> None:
    """Until all of these have the status."""
    wait_for(
        connection,
        "SELECT bool_and(status = %s), array_agg((id, status, last_error)::text) FILTER (WHERE status <> %s) "
        f"FROM {table} WHERE id = ANY (%s)",
        [status, status, list(ids)],
        timeout,
    )


def start_gated(connection: psycopg.Connection, table: str) -> int:
    """A running job, which ends once the gate is opened."""
    run(connection, "SELECT pg_advisory_lock(%s)", GATE)
    (job_id,) = insert(connection, table, "gated")
    wait_status(connection, table, "running", job_id)
    return job_id


def open_gate(connection: psycopg.Connection) -> None:
    run(connection, "SELECT pg_advisory_unlock(%s)", GATE)


def others_go_on(connection: psycopg.Connection, *tables: str, timeout: float = 20) -> None:
    """The node performs what comes next, here and elsewhere."""
    for table in ("other_jobs", *tables):
        wait_status(connection, table, "succeeded", *insert(connection, table, "", ""), timeout=timeout)


def wait_event(node: NodeProcess, event: str, **values: object) -> dict[str, Any]:
    """The first such log line."""

    def matching() -> list[dict[str, Any]]:
        return [line for line in node.log(event) if all(line.get(name) == value for name, value in values.items())]

    wait_until(lambda: bool(matching()), f"log event {event} {values}")
    return matching()[0]


# --- rows and tables that change while their job runs ---


def test_a_row_that_is_deleted_while_its_job_runs(node: NodeProcess, db: psycopg.Connection) -> None:
    job_id = start_gated(db, "deleted_jobs")
    run(db, "DELETE FROM deleted_jobs")
    open_gate(db)
    assert wait_event(node, "claims_lost", job_type="DeletedJob")["ids"] == [job_id]
    others_go_on(db, "deleted_jobs")


def test_a_row_that_is_updated_while_its_job_runs_keeps_what_the_user_wrote(db: psycopg.Connection) -> None:
    job_id = start_gated(db, "updated_jobs")
    run(db, "UPDATE updated_jobs SET label = 'mine', priority = 7, queue = 'mine', run_at = now() + interval '1 day'")
    open_gate(db)
    wait_status(db, "updated_jobs", "succeeded", job_id)
    row = job(db, "updated_jobs", job_id)
    assert (row.label, row.priority, row.queue, row.attempts_count) == ("mine", 7, "mine", 1)
    others_go_on(db, "updated_jobs")


def test_a_table_that_is_truncated_while_its_job_runs(node: NodeProcess, db: psycopg.Connection) -> None:
    job_id = start_gated(db, "truncated_jobs")
    run(db, "TRUNCATE truncated_jobs")
    others_go_on(db, "truncated_jobs")
    open_gate(db)
    assert wait_event(node, "claims_lost", job_type="TruncatedJob")["ids"] == [job_id]


def test_a_table_that_is_dropped_while_its_job_runs_and_created_anew(node: NodeProcess, db: psycopg.Connection) -> None:
    start_gated(db, "dropped_jobs")
    run(db, "DROP TABLE dropped_jobs")
    others_go_on(db)
    open_gate(db)
    wait_event(node, "table_missing", job_type="DroppedJob")
    others_go_on(db)
    migrate_jobs(db, [found for found in job_classes(node.app_dir) if found.__name__ == "DroppedJob"])
    others_go_on(db, "dropped_jobs")
    wait_event(node, "table_found", job_type="DroppedJob")


def test_a_table_that_is_renamed_while_its_job_runs_and_renamed_back(node: NodeProcess, db: psycopg.Connection) -> None:
    job_id = start_gated(db, "renamed_jobs")
    run(db, "ALTER TABLE renamed_jobs RENAME TO elsewhere")
    others_go_on(db)
    open_gate(db)
    wait_event(node, "table_missing", job_type="RenamedJob")
    others_go_on(db)
    run(db, "ALTER TABLE elsewhere RENAME TO renamed_jobs")
    others_go_on(db, "renamed_jobs")
    wait_status(db, "renamed_jobs", "succeeded", job_id)


def test_a_table_without_a_class_is_left_alone_and_named(node: NodeProcess, db: psycopg.Connection) -> None:
    assert wait_event(node, "unroutable_tables")["tables"] == ["foreign_jobs"]
    run(db, "INSERT INTO foreign_jobs DEFAULT VALUES")
    others_go_on(db)
    seen = db.execute("SELECT DISTINCT status::text, attempts_count, locked_by FROM foreign_jobs").fetchall()
    assert seen == [("not_started", 0, None)]


def test_a_column_may_be_added_while_the_node_runs(db: psycopg.Connection) -> None:
    others_go_on(db, "widened_jobs")
    job_id = start_gated(db, "widened_jobs")
    run(db, "ALTER TABLE widened_jobs ADD COLUMN note text DEFAULT 'none'")
    open_gate(db)
    wait_status(db, "widened_jobs", "succeeded", job_id)
    others_go_on(db, "widened_jobs")


def test_a_column_may_change_its_type_while_the_node_runs(db: psycopg.Connection) -> None:
    others_go_on(db, "retyped_jobs")
    run(db, "ALTER TABLE retyped_jobs ALTER COLUMN size TYPE smallint")
    others_go_on(db, "retyped_jobs")


def test_a_column_that_is_dropped_stops_its_type_only_until_it_is_back(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    others_go_on(db, "narrowed_jobs")
    run(db, "ALTER TABLE narrowed_jobs DROP COLUMN size")
    (job_id,) = insert(db, "narrowed_jobs", "")
    wait_event(node, "table_missing", job_type="NarrowedJob")
    others_go_on(db)
    run(db, "ALTER TABLE narrowed_jobs ADD COLUMN size integer NOT NULL DEFAULT 0")
    wait_status(db, "narrowed_jobs", "succeeded", job_id)


# --- triggers and constraints that refuse the cluster's update ---

REFUSE = """
CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.label = 'bad' AND {condition} THEN
        RAISE EXCEPTION 'not this one';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()
"""
BATCH = ["", "", "bad", *[""] * 17]


def refuse(connection: psycopg.Connection, table: str, condition: str) -> tuple[int, list[int]]:
    """Has a trigger refuse the row in the middle of a batch. Returns its id, and the others'."""
    run(connection, REFUSE.format(table=table, condition=condition))
    ids = insert(connection, table, *BATCH)
    bad = ids.pop(2)
    return bad, ids


@pytest.mark.parametrize("name", ["refused", "refused_limited"])
def test_a_row_whose_claim_a_trigger_refuses_is_failed_and_the_others_run(
    name: str, node: NodeProcess, db: psycopg.Connection
) -> None:
    table = f"{name}_jobs"
    bad, good = refuse(db, table, "NEW.status = 'running'")
    wait_status(db, table, "succeeded", *good)
    wait_status(db, table, "failed", bad)
    row = job(db, table, bad)
    assert "refuses to let this job run: not this one" in row.last_error
    assert row.attempts_count == 0
    wait_event(node, "job_set_aside", job_type=f"{name.title().replace('_', '')}Job", job_id=bad)
    others_go_on(db, table)


def test_a_row_that_a_trigger_never_lets_change_stays_and_the_others_run(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    bad, good = refuse(db, "refused_whole_jobs", "true")
    wait_status(db, "refused_whole_jobs", "succeeded", *good)
    wait_event(node, "job_set_aside", job_type="RefusedWholeJob", job_id=bad)
    assert job(db, "refused_whole_jobs", bad).status == "not_started"
    others_go_on(db, "refused_whole_jobs")


@pytest.mark.parametrize("name", ["finish", "finish_limited"])
def test_a_row_whose_success_a_trigger_refuses_is_failed_and_the_others_succeed(
    name: str, node: NodeProcess, db: psycopg.Connection
) -> None:
    table = f"{name}_jobs"
    bad, good = refuse(db, table, "NEW.status = 'succeeded'")
    wait_status(db, table, "succeeded", *good)
    wait_status(db, table, "failed", bad)
    assert "refuses the outcome 'succeeded' of this job: not this one" in job(db, table, bad).last_error
    wait_event(node, "job_set_aside", job_type=f"{name.title().replace('_', '')}Job", job_id=bad)
    others_go_on(db, table)


def test_a_row_whose_outcome_a_trigger_always_refuses_waits_and_the_others_succeed(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    bad, good = refuse(db, "finish_whole_jobs", "OLD.status = 'running'")
    wait_status(db, "finish_whole_jobs", "succeeded", *good)
    trouble = wait_event(node, "trouble_began", job_type="FinishWholeJob", reason="outcome_refused")
    assert trouble["detail"] == f"row {bad}: not this one"
    assert job(db, "finish_whole_jobs", bad).status == "running"
    others_go_on(db, "finish_whole_jobs")


def test_a_row_whose_success_a_check_refuses_is_failed_and_the_others_succeed(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    run(db, "ALTER TABLE checked_jobs ADD CONSTRAINT never_done CHECK (status <> 'succeeded' OR label <> 'bad')")
    ids = insert(db, "checked_jobs", *BATCH)
    bad = ids.pop(2)
    wait_status(db, "checked_jobs", "succeeded", *ids)
    wait_status(db, "checked_jobs", "failed", bad)
    error = job(db, "checked_jobs", bad).last_error
    assert "never_done" in error
    assert "Failing row" not in error
    wait_event(node, "job_set_aside", job_type="CheckedJob", job_id=bad)
    others_go_on(db, "checked_jobs")


@pytest.mark.parametrize("table", ["once_jobs", "once_limited_jobs"])
def test_a_claim_that_is_refused_only_once_is_tried_again(table: str, db: psycopg.Connection) -> None:
    """As when another node has set the row aside between this node's claim and its second look."""
    run(db, f"CREATE SEQUENCE {table}_tries")
    run(db, REFUSE.format(table=table, condition=f"NEW.status = 'running' AND nextval('{table}_tries') = 1"))
    wait_status(db, table, "succeeded", *insert(db, table, *BATCH))


def test_a_row_whose_claim_a_trigger_skips_stays_and_the_others_run(db: psycopg.Connection) -> None:
    run(
        db,
        REFUSE.format(table="skipped_jobs", condition="true").replace("RAISE EXCEPTION 'not this one'", "RETURN NULL"),
    )
    bad, *good = insert(db, "skipped_jobs", "bad", *[""] * 19)
    wait_status(db, "skipped_jobs", "succeeded", *good)
    others_go_on(db, "skipped_jobs")
    assert job(db, "skipped_jobs", bad).status == "not_started"


def test_a_users_trigger_may_change_columns_of_the_users(node: NodeProcess, db: psycopg.Connection) -> None:
    run(db, "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN NEW.size := OLD.size + 1; NEW.updated_at := 'epoch'; RETURN NEW; END$$;"
            "CREATE TRIGGER touch BEFORE UPDATE ON touched_jobs FOR EACH ROW EXECUTE FUNCTION touch()")  # fmt: skip
    ids = insert(db, "touched_jobs", *[""] * 10)
    wait_status(db, "touched_jobs", "succeeded", *ids)
    assert {job(db, "touched_jobs", job_id).size for job_id in ids} == {2}
    assert not [line for line in node.log("job_set_aside") if line["job_type"] == "TouchedJob"]


# --- somebody's psql, idle in a transaction ---


@pytest.mark.parametrize("table", ["locked_waiting_jobs", "locked_waiting_limited_jobs"])
def test_a_lock_on_a_waiting_row_holds_up_that_row_only(
    table: str, db: psycopg.Connection, other: psycopg.Connection
) -> None:
    run(db, "INSERT INTO cluster.queues (name, paused_at) VALUES (%s, now())", table)
    run(db, f"ALTER TABLE {table} ALTER COLUMN queue SET DEFAULT '{table}'")
    held, *rest = insert(db, table, *[""] * 10)
    run(other, f"SELECT FROM {table} WHERE id = %s FOR UPDATE", held)
    run(db, "DELETE FROM cluster.queues WHERE name = %s", table)
    wait_status(db, table, "succeeded", *rest)
    others_go_on(db, table)
    assert job(db, table, held).status == "not_started"
    other.rollback()
    wait_status(db, table, "succeeded", held)


def test_a_lock_on_a_running_row_holds_up_that_row_only(db: psycopg.Connection, other: psycopg.Connection) -> None:
    held = start_gated(db, "locked_running_jobs")
    rest = insert(db, "locked_running_jobs", *["gated"] * 9)
    wait_status(db, "locked_running_jobs", "running", *rest)
    run(other, "SELECT FROM locked_running_jobs WHERE id = %s FOR UPDATE", held)
    open_gate(db)
    wait_status(db, "locked_running_jobs", "succeeded", *rest)
    others_go_on(db, "locked_running_jobs")
    assert job(db, "locked_running_jobs", held).status == "running"
    other.rollback()
    wait_status(db, "locked_running_jobs", "succeeded", held)


def test_a_locked_table_holds_up_that_type_only(db: psycopg.Connection, other: psycopg.Connection) -> None:
    job_id = start_gated(db, "locked_table_jobs")
    run(other, "LOCK TABLE locked_table_jobs IN ACCESS EXCLUSIVE MODE")
    others_go_on(db, timeout=8)
    open_gate(db)
    others_go_on(db, timeout=8)
    others_go_on(db, timeout=8)
    other.rollback()
    wait_status(db, "locked_table_jobs", "succeeded", job_id)
    others_go_on(db, "locked_table_jobs")


# --- nodes that refuse to start ---

JOB = """
from cluster import Job

class {name}Job(Job):
    table = {table!r}
    number: {type} = 0

    async def perform(self): ...
"""
ONE = JOB.format(name="One", table="one_jobs", type="int")


class Start:
    """Starts a node that can't run."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.database_url = database_url
        self.folder = folder

    def migrate(self) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            migrate_jobs(connection, job_classes(self.folder))

    def refused(self, source: str | dict[str, str] | None = ONE, url: str = "", **settings: object) -> tuple[int, str]:
        """Exit code and the one line on stderr."""
        if source is not None:
            write_jobs(self.folder, source)
        node = NodeProcess(url or self.database_url, self.folder, **settings)
        node.start()
        try:
            code = node.wait_exit()
        finally:
            node.clean_up()
        lines = [str(line["event"]) for line in node.log()]
        assert len(lines) == 1, lines
        assert node.output() == ""
        return code, lines[0]


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Start:
    """On a migrated database, without any job table."""
    return Start(database_url, tmp_path)


def test_a_job_module_that_fails_to_import_exits_4(start: Start) -> None:
    code, line = start.refused({"broken": "import json\n\n1 / 0\n"})
    assert code == 4
    assert "can't import jobs.broken: ZeroDivisionError: division by zero (jobs/broken.py:3)" in line


def test_a_syntax_error_exits_4(start: Start) -> None:
    code, line = start.refused("class\n")
    assert code == 4
    assert "jobs/__init__.py:1" in line


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (("One", "one_jobs"), ("Two", "one_jobs"), "both have the table one_jobs"),
        (("One", "one_jobs"), ("One", "two_jobs"), "both have the name OneJob"),
    ],
)
def test_twins_exit_4(first: tuple[str, str], second: tuple[str, str], said: str, start: Start) -> None:
    modules = {
        module: JOB.format(name=name, table=table, type="int")
        for module, (name, table) in (("a", first), ("b", second))
    }
    code, line = start.refused(modules)
    assert code == 4
    assert said in line


def test_no_job_class_exits_4(start: Start) -> None:
    code, line = start.refused("")
    assert code == 4
    assert "CLUSTER_JOBS" in line


def test_jobs_that_do_not_exist_exit_4(start: Start) -> None:
    code, line = start.refused(jobs="jbos")
    assert code == 4
    assert "did you mean 'jobs'?" in line


def test_a_missing_table_exits_5(start: Start) -> None:
    code, line = start.refused()
    assert code == 5
    assert "table one_jobs of OneJob is missing" in line
    assert "cluster migrate" in line


def test_a_column_of_another_type_exits_5_and_is_named(start: Start) -> None:
    write_jobs(start.folder, ONE)
    start.migrate()
    code, line = start.refused(JOB.format(name="One", table="one_jobs", type="float"))
    assert code == 5
    assert "column number of table one_jobs" in line


def test_a_missing_column_exits_5_and_is_named(start: Start) -> None:
    write_jobs(start.folder, ONE)
    start.migrate()
    code, line = start.refused(ONE.replace("number:", "amount:"))
    assert code == 5
    assert "column amount of table one_jobs is missing" in line


def test_no_schema_exits_5_and_says_to_migrate(empty_database_url: str, tmp_path: Path) -> None:
    code, line = Start(empty_database_url, tmp_path).refused()
    assert code == 5
    assert "cluster migrate" in line


@pytest.mark.parametrize(
    "url",
    ["postgresql://nobody:secret@127.0.0.1:1/none", "postgresql://postgres@no-such-host.invalid/none"],
    ids=["refused", "unknown"],
)
def test_an_unreachable_database_exits_3(url: str, start: Start) -> None:
    code, line = start.refused(url=url)
    assert code == 3
    assert "secret" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processes", "0"), ("concurrency", "many"), ("lease", "6s"), ("shutdown_timeout", "-1"), ("http_port", "70000"),
        ("log_level", "loud"), ("queue", "default"),
    ],
)  # fmt: skip
def test_a_bad_setting_exits_2_and_is_named(name: str, value: str, start: Start) -> None:
    code, line = start.refused(**{name: value})
    assert code == 2
    assert f"CLUSTER_{name.upper()}" in line


def test_a_taken_http_port_exits_2(start: Start) -> None:
    write_jobs(start.folder, ONE)
    start.migrate()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = start.refused(http_port=taken.getsockname()[1])
    assert code == 2
    assert "CLUSTER_HTTP_PORT" in line
