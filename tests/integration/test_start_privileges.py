"""A node whose role may not do what it needs says so at its start, and does not start."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cluster import Job
from cluster.errors import ExitCode, SchemaMisfitError
from cluster.migration import check_schema, migrate_jobs
from cluster.privileges import OWN_TABLES, check_privileges
from tests.support.nodes import NodeProcess, wait_for, write_jobs

SOURCE = """
from cluster import Job

class GrantedJob(Job):
    number: int = 0
    async def perform(self): ...
"""
OWN = [(f"cluster.{table}", privilege) for table, privileges in OWN_TABLES.items() for privilege in privileges]


class GrantedJob(Job):
    number: int = 0

    async def perform(self) -> None: ...


class PrunedJob(Job):
    table = "granted_jobs"
    number: int = 0
    retention = timedelta(days=1)

    async def perform(self) -> None: ...


class KeyedJob(Job):
    table = "granted_jobs"
    number: int = 0
    concurrency_key = "number"

    async def perform(self) -> None: ...


class Role:
    """May do what a node needs, until it is taken away; `name` needs quotes in SQL."""

    def __init__(self, conn: psycopg.Connection[Any], url: str) -> None:
        self.name = f'"a node-{uuid4().hex[:8]}"'
        self._conn = conn
        self.run(f"CREATE ROLE {self.name} LOGIN")
        self.run(f"GRANT USAGE ON SCHEMA cluster TO {self.name}")
        for table, privileges in OWN_TABLES.items():
            self.grant(", ".join(privileges), f"cluster.{table}")
        self.grant("SELECT, UPDATE", "granted_jobs")
        self.url = make_conninfo(url, user=self.name.strip('"'))

    def run(self, statement: str) -> None:
        self._conn.execute(statement.encode())

    def grant(self, what: str, table: str) -> None:
        self.run(f"GRANT {what} ON {table} TO {self.name}")

    def revoke(self, what: str, table: str) -> None:
        self.run(f"REVOKE {what} ON {table} FROM {self.name}")

    def check(self, job_class: type[Job] = GrantedJob) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            check_schema(connection, [job_class])
            check_privileges(connection, [job_class])

    def complaint(self, job_class: type[Job] = GrantedJob) -> str:
        with pytest.raises(SchemaMisfitError) as caught:
            self.check(job_class)
        return str(caught.value)


@pytest.fixture
def role(conn: psycopg.Connection, database_url: str) -> Iterator[Role]:
    migrate_jobs(conn, [GrantedJob])
    role = Role(conn, database_url)
    yield role
    role.run(f"DROP OWNED BY {role.name}; DROP ROLE {role.name}")


def test_what_a_node_needs_is_enough(role: Role) -> None:
    role.check()


@pytest.mark.parametrize("privilege", ["SELECT", "UPDATE"])
def test_a_privilege_on_a_job_table_is_named_with_its_remedy(role: Role, privilege: str) -> None:
    role.revoke(privilege, "granted_jobs")
    what = f'{privilege} ON "granted_jobs"'
    assert role.complaint() == f"role {role.name} lacks {what}, which a node needs: GRANT {what} TO {role.name}"
    role.run(role.complaint().partition(": ")[2])
    role.check()


@pytest.mark.parametrize(("table", "privilege"), [pair for pair in OWN if pair != ("cluster.migrations", "SELECT")])
def test_a_privilege_on_a_table_of_the_cluster_is_named(role: Role, table: str, privilege: str) -> None:
    role.revoke(privilege, table)
    if table == "cluster.job_types":
        role.run("REVOKE SELECT ON cluster.job_types FROM PUBLIC")
    assert f'lacks {privilege} ON "cluster"."{table.partition(".")[2]}"' in role.complaint()


def test_rows_that_are_kept_for_a_time_must_be_deletable(role: Role, conn: psycopg.Connection) -> None:
    role.check()
    assert 'lacks DELETE ON "granted_jobs"' in role.complaint(PrunedJob)
    role.grant("DELETE", "granted_jobs")
    role.check(PrunedJob)


def test_all_that_is_lacking_is_named_at_once(role: Role) -> None:
    role.revoke("ALL", "granted_jobs")
    role.revoke("DELETE", "cluster.nodes")
    lacks = role.complaint().partition(", which")[0]
    assert lacks.endswith('lacks DELETE ON "cluster"."nodes", SELECT ON "granted_jobs", UPDATE ON "granted_jobs"')


READ = (
    "id, queue, priority, run_at, status, attempts_count, crashes_count, last_error, locked_at, locked_by, finished_at,"
    " cancel_requested_at, created_at, schedule, scheduled_for, number, xmin"
)
WRITTEN = "status, run_at, attempts_count, crashes_count, last_error, locked_at, locked_by, started_at, finished_at, updated_at"


def test_grants_on_the_columns_that_a_node_reads_and_writes_are_enough(role: Role, conn: psycopg.Connection) -> None:
    role.revoke("ALL", "granted_jobs")
    role.grant(f"SELECT ({READ}), UPDATE ({WRITTEN})", "granted_jobs")
    role.check()
    migrate_jobs(conn, [KeyedJob])
    assert 'lacks SELECT ("parked") ON "granted_jobs", UPDATE ("parked") ON "granted_jobs"' in role.complaint(KeyedJob)
    role.revoke("SELECT (number)", "granted_jobs")
    assert 'lacks SELECT ("number") ON "granted_jobs", which' in role.complaint()


def test_such_a_node_performs_jobs(role: Role, conn: psycopg.Connection, tmp_path: Path) -> None:
    """The list of columns is what the statements touch, and not only what somebody thinks that they do."""
    role.revoke("ALL", "granted_jobs")
    role.grant(f"SELECT ({READ}), UPDATE ({WRITTEN})", "granted_jobs")
    write_jobs(tmp_path, SOURCE)
    node = NodeProcess(role.url, tmp_path)
    node.start()
    try:
        node.wait_ready()
        conn.execute(
            "INSERT INTO granted_jobs (run_at) SELECT now() + n * interval '0.1 s' FROM generate_series(-5, 5) n"
        )
        wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")
        assert not node.log("trouble_began")
        assert node.stop() == 0
    finally:
        node.clean_up()


def exit_of(url: str, folder: Path) -> tuple[int, list[str]]:
    """Exit code and lines of a node that does not start."""
    write_jobs(folder, SOURCE)
    node = NodeProcess(url, folder)
    node.start()
    try:
        code = node.wait_exit()
        return code, [str(line.get("event")) for line in node.log()]
    finally:
        node.clean_up()


def test_such_a_node_exits_with_the_code_of_a_misfit_and_one_line(role: Role, tmp_path: Path) -> None:
    role.revoke("UPDATE", "granted_jobs")
    code, lines = exit_of(role.url, tmp_path)
    assert code == ExitCode.SCHEMA_MISFIT
    assert len(lines) == 1
    assert f'role {role.name} lacks UPDATE ON "granted_jobs"' in lines[0]


def test_a_role_that_may_not_use_the_schema_is_told_so(role: Role, tmp_path: Path) -> None:
    role.run("REVOKE USAGE ON SCHEMA cluster FROM PUBLIC")
    role.revoke("USAGE", "SCHEMA cluster")
    code, lines = exit_of(role.url, tmp_path)
    assert code == ExitCode.SCHEMA_MISFIT
    assert len(lines) == 1
    assert role.name.strip('"') in lines[0]
    assert "schema cluster" in lines[0]


def test_a_column_that_is_gone_is_named_at_the_start(role: Role, conn: psycopg.Connection, tmp_path: Path) -> None:
    conn.execute("ALTER TABLE granted_jobs DROP COLUMN crashes_count CASCADE")
    code, lines = exit_of(role.url, tmp_path)
    assert (code, len(lines)) == (ExitCode.SCHEMA_MISFIT, 1)
    assert "column crashes_count is missing in table granted_jobs" in lines[0]


def test_hundreds_of_classes_are_checked_in_a_few_queries(conn: psycopg.Connection, role: Role) -> None:
    executed = list[bytes]()

    class Counting(psycopg.Connection[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            executed.append(query)
            return super().execute(query, *arguments, **options)

    with Counting.connect(role.url, autocommit=True) as connection:
        check_schema(connection, [GrantedJob] * 300)
        check_privileges(connection, [GrantedJob] * 300)
    assert len(executed) < 10
