"""The roles of docs/production.md, made from the SQL of that page: what each of them can do, and what it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors

from cluster import Job
from cluster.migration import migrate_jobs
from tests.support.nodes import NodeProcess, wait_for, write_jobs
from tests.support.roles import EmailCustomersJob, Shop, blocks, shop_of_the_guide

SOURCE = """
from datetime import timedelta
from typing import Annotated
from cluster import Job, References

class EmailCustomersJob(Job):
    customer_id: Annotated[int, References("customers.id", on_delete="cascade")]
    retention_failed = timedelta(days=1)
    async def perform(self): ...
"""


@pytest.fixture
def shop(empty_database_url: str) -> Iterator[Shop]:
    """One job waits."""
    with shop_of_the_guide(empty_database_url) as made:
        yield made


ENQUEUE = (
    "INSERT INTO email_customers_jobs (customer_id, queue, priority, run_at) VALUES (2, 'q', 9, now()) RETURNING id"
)
READ = "SELECT customer_id FROM email_customers_jobs"
CLAIM = "UPDATE email_customers_jobs SET status = 'running', locked_at = now()"
CANCEL = "SELECT cluster.cancel('email_customers_jobs', 1)"
RETRY = "SELECT cluster.retry('email_customers_jobs', 1)"
CLEAR = "DELETE FROM email_customers_jobs"
PAUSE = (
    "SELECT cluster.pause('email_customers_jobs'::regclass), cluster.pause('bulk'), cluster.pause(), cluster.resume()"
)
LIMIT = "UPDATE cluster.job_types SET max_concurrency_override = 4"
OPTION = "UPDATE cluster.job_types SET max_attempts = 4"
TYPES = "SELECT FROM cluster.job_types"
NODES = "SELECT FROM cluster.nodes, cluster.queues, cluster.migrations, cluster.identity"
LOSE = "UPDATE cluster.nodes SET state = 'lost'"
TURN = "SELECT FROM cluster.turns FOR UPDATE"
ADOPT = "UPDATE cluster.identity SET database = 1"
CREATE = "CREATE TABLE cluster.mine ()"
ALTER = "ALTER TABLE email_customers_jobs DISABLE TRIGGER USER"
CUSTOMERS = "SELECT FROM customers"
SURVEY = "SELECT FROM cluster.autoscaling"
SCHEDULE = """INSERT INTO cluster.schedules (name, job_table, job_values, every)
VALUES ('a', 'email_customers_jobs', '{"customer_id": 2}', '1 hour')"""
SAVE_VIEW = "INSERT INTO cluster.views (job_table, name, query, who) VALUES ('email_customers_jobs', 'a', 'status=failed', 'ann')"
VIEWS = "SELECT FROM cluster.views"
WHY = "SELECT * FROM cluster.why('email_customers_jobs', 1)"
DRAIN = "INSERT INTO cluster.drains (node) VALUES (gen_random_uuid())"
NOTE = "INSERT INTO cluster.audit (who, via, action, target) VALUES ('ann', 'cli', 'pause', 'a')"
FORGET = "DELETE FROM cluster.audit"
PRUNE = "SELECT cluster.prune_audit()"
RING = "SELECT pg_notify('cluster_doorbell', '')"
ALL = {
    ENQUEUE,
    READ,
    CLAIM,
    CANCEL,
    RETRY,
    CLEAR,
    PAUSE,
    LIMIT,
    OPTION,
    TYPES,
    NODES,
    LOSE,
    TURN,
    ADOPT,
    CREATE,
    ALTER,
    CUSTOMERS,
    SURVEY,
    SCHEDULE,
    SAVE_VIEW,
    VIEWS,
    WHY,
    DRAIN,
    NOTE,
    FORGET,
    PRUNE,
    RING,
}
MAY = {
    "neighbour": {TYPES, PRUNE, RING},
    "app": {ENQUEUE, TYPES, PRUNE, RING},
    "reader": {READ, TYPES, NODES, VIEWS, WHY, PRUNE, RING},
    "operator": {
        READ,
        CLAIM,
        CANCEL,
        RETRY,
        CLEAR,
        PAUSE,
        LIMIT,
        TYPES,
        NODES,
        SAVE_VIEW,
        VIEWS,
        WHY,
        DRAIN,
        NOTE,
        PRUNE,
        RING,
    },
    "node": {ENQUEUE, READ, CLAIM, CANCEL, RETRY, CLEAR, TYPES, NODES, LOSE, TURN, DRAIN, PRUNE, RING},
    "autoscaler": {TYPES, SURVEY, PRUNE, RING},
    "migrator": ALL - {CUSTOMERS},
}


def test_each_role_of_the_guide_can_do_what_it_is_for_and_no_more(shop: Shop) -> None:
    done = dict[str, set[str]]()
    for role in MAY:
        with shop.connect(role) as connection:
            done[role] = {statement for statement in ALL if _may(connection, statement)}
    assert done == MAY


def _may(connection: psycopg.Connection[Any], statement: str) -> bool:
    """Tries it, and takes it back. Other errors than a lack of privilege come after the question whether one may."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
    except errors.InsufficientPrivilege:
        return False
    except (errors.CheckViolation, errors.ObjectNotInPrerequisiteState):
        pass
    return True


def test_the_enqueuer_enqueues_from_python_one_by_one_and_in_bulk(shop: Shop) -> None:
    with shop.connect("app") as connection:
        assert EmailCustomersJob(customer_id=1).perform_later(connection, delay=timedelta(hours=1)).id
        EmailCustomersJob.perform_many(connection, [EmailCustomersJob(customer_id=2)] * 3)
    with shop.connect("reader") as connection:
        assert connection.execute("SELECT count(*) FROM email_customers_jobs").fetchone() == (5,)


def test_a_node_with_the_grants_of_the_guide_performs_rescues_and_prunes(shop: Shop, tmp_path: Path) -> None:
    write_jobs(tmp_path, SOURCE)
    lost = uuid4()
    with shop.connect("migrator") as owner:
        owner.execute(
            "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, state)"
            " VALUES (%s, 'gone', 1, '0', '{*}', '{}', now(), 1, 'lost')",
            [lost],
        )
        owner.execute(
            "UPDATE email_customers_jobs SET status = 'running', locked_at = now(), locked_by = %s, attempts_count = 1",
            [lost],
        )
        owner.execute("INSERT INTO email_customers_jobs (customer_id) VALUES (1)")
        owner.execute(
            "UPDATE email_customers_jobs SET status = 'failed', finished_at = '2020-01-01' WHERE locked_by IS NULL"
        )
    node = NodeProcess(shop.url_of("node"), tmp_path)
    node.start()
    try:
        node.wait_ready()
        with shop.connect("reader") as connection:
            wait_for(connection, "SELECT count(*) = 1 AND bool_and(status = 'succeeded') FROM email_customers_jobs")
            wait_for(connection, "SELECT count(*) = 1 FROM cluster.failures WHERE outcome = 'lost'")
        assert not [line for line in node.log() if "no_privilege" in str(line)]
        assert node.stop() == 0
    finally:
        node.clean_up()


def test_the_grants_of_nodes_readers_and_operators_reach_job_tables_that_the_migrator_makes_later(shop: Shop) -> None:
    later = type("LaterJob", (Job,), {"__annotations__": {}, "perform": lambda self: None})
    with shop.connect("migrator") as migrator:
        migrate_jobs(migrator, [later])
    for role, statement in (
        ("node", "UPDATE later_jobs SET status = 'running'"),
        ("reader", "SELECT FROM later_jobs"),
        ("operator", "DELETE FROM later_jobs"),
    ):
        with shop.connect(role) as connection:
            assert _may(connection, statement)
    with shop.connect("reader") as connection:
        assert not _may(connection, "DELETE FROM later_jobs")


def test_the_operators_commands_and_the_readers_work_with_their_grants(shop: Shop) -> None:
    assert "EmailCustomersJob" in shop.command("reader", "status")
    shop.command("operator", "pause", "EmailCustomersJob", "--reason", "why")
    shop.command("operator", "pause", "--all")
    assert "why" in shop.command("reader", "status")
    shop.command("operator", "resume", "--all")
    assert "type paused" in shop.command("reader", "why", "EmailCustomersJob")
    shop.command("operator", "resume", "EmailCustomersJob")
    assert "cancelled" in shop.command("operator", "cancel", "EmailCustomersJob", "1")
    assert "not_started" in shop.command("operator", "retry", "EmailCustomersJob", "1")
    assert "1 deleted" in shop.command("operator", "clear", "EmailCustomersJob", "--yes")


def test_finished_rows_move_to_the_partitioned_history_of_the_guide(shop: Shop) -> None:
    create, move = blocks("Partitioned history")
    with shop.connect("migrator") as migrator:
        migrator.execute(create.replace("2026-11-01", "2020-01-01").replace("2026-12-01", "2020-02-01").encode())
        migrator.execute("INSERT INTO email_customers_jobs (customer_id) SELECT 2 FROM generate_series(1, 3)")
        migrator.execute(
            "UPDATE email_customers_jobs SET status = 'succeeded', finished_at = '2020-01-15' WHERE id <= 2"
        )
        migrator.execute("UPDATE email_customers_jobs SET status = 'failed', finished_at = now() WHERE id = 3")
        migrator.execute(move.encode())
        assert migrator.execute("SELECT id FROM email_customers_jobs ORDER BY id").fetchall() == [(3,), (4,)]
        moved = migrator.execute("SELECT id, customer_id, status::text FROM email_customers_jobs_history ORDER BY id")
        assert moved.fetchall() == [(1, 1, "succeeded"), (2, 2, "succeeded")]
