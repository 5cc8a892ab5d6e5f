"""Copies of a database: nodes refuse them until they are told otherwise, and nothing else does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cluster.embedded import EmbeddedPostgres
from cluster.embedded.programs import run_as
from cluster.errors import ExitCode, SchemaMisfitError
from cluster.identity import check_identity
from cluster.migration import check_schema, migrate_jobs, migrate_schema, planned_changes
from tests.integration.test_start_privileges import SOURCE, GrantedJob, exit_of
from tests.support.nodes import running_node, wait_for
from tests.support.postgres import RunServer, make_run_folder

Call = Callable[..., tuple[int, str, str]]
REMEDY = "then run `cluster migrate --adopt`"
RECORDED = "SELECT system_identifier, database::bigint FROM cluster.identity"
HERE = (
    "SELECT system_identifier, (SELECT oid::bigint FROM pg_database WHERE datname = current_database())"
    " FROM pg_control_system()"
)


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """A command in an application with one job class: exit code, output, errors."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/__init__.py").write_text(SOURCE)

    def run(url: str, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "cluster", *words],
            cwd=tmp_path, env={"CLUSTER_DATABASE_URL": url, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    return run


@pytest.fixture
def original(run_server: RunServer) -> Iterator[str]:
    """A database that was migrated, with a job that waits."""
    with run_server.database() as url:
        with psycopg.connect(url, autocommit=True) as conn:
            migrate_schema(conn)
            migrate_jobs(conn, [GrantedJob])
            conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
        yield url


@pytest.fixture
def restored(original: str, run_server: RunServer, tmp_path: Path) -> Iterator[str]:
    """A dump of it, restored under another name."""
    dumped = run_as(None, run_server.postgres.bin_dir / "pg_dump", f"--dbname={original}")
    (tmp_path / "dump.sql").write_text(dumped.stdout)
    with run_server.database() as url:
        psql = run_server.postgres.bin_dir / "psql"
        done = run_as(None, psql, "-qXv", "ON_ERROR_STOP=1", "-f", str(tmp_path / "dump.sql"), url)
        assert (done.returncode, done.stderr) == (0, "")
        yield url


def refusal(url: str) -> str:
    with pytest.raises(SchemaMisfitError) as caught, psycopg.connect(url, autocommit=True) as conn:
        check_identity(conn)
    return str(caught.value)


def test_a_restored_dump_does_not_run_the_originals_jobs_until_it_is_adopted(
    original: str, restored: str, call: Call, tmp_path: Path
) -> None:
    code, lines = exit_of(restored, tmp_path)
    assert (code, len(lines)) == (ExitCode.SCHEMA_MISFIT, 1)
    assert lines[0].startswith("cluster: this is a copy of another database, or of one that was moved (recorded: ")
    assert lines[0].endswith(REMEDY)
    code, _, errors = call(restored, "migrate")  # whoever tries a migration on a copy need not arm it
    assert code == 0
    assert errors.startswith("nodes will not start: this is a copy")
    assert call(restored, "enqueue", "GrantedJob")[0] == 0
    assert refusal(restored) in lines[0]

    assert call(restored, "migrate", "--adopt") == (0, "this database is no copy any more: nodes may run its jobs", "")
    with (
        psycopg.connect(restored, autocommit=True) as conn,
        running_node(restored, tmp_path / "node", SOURCE),
    ):
        wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")
    with psycopg.connect(original, autocommit=True) as conn:
        check_identity(conn)
        assert conn.execute("SELECT status::text FROM granted_jobs").fetchall() == [("not_started",)]


def test_a_clone_of_a_database_is_a_copy(original: str, run_server: RunServer) -> None:
    with run_server.database(original.partition("?")[0].rpartition("/")[2]) as clone:
        assert refusal(clone).endswith(REMEDY)


def test_a_database_on_another_server_is_a_copy_although_it_has_the_same_number(original: str) -> None:
    with psycopg.connect(original, autocommit=True) as conn:
        conn.execute("UPDATE cluster.identity SET system_identifier = 1")
    assert "of server 1; this is" in refusal(original)


def test_a_role_that_may_not_ask_for_the_server_compares_the_database(
    conn: psycopg.Connection, database_url: str
) -> None:
    role = f"asks_{uuid4().hex[:8]}"
    migrate_schema(conn)
    conn.execute(
        f"REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE {role} LOGIN;"
        f"GRANT SELECT ON cluster.identity TO {role}".encode()
    )
    try:
        url = make_conninfo(database_url, user=role)
        with psycopg.connect(url, autocommit=True) as connection:
            check_identity(connection)
        conn.execute("UPDATE cluster.identity SET database = 1")
        assert "this is " in refusal(url)
    finally:
        conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_adopting_a_database_that_is_no_copy_changes_nothing(original: str, call: Call) -> None:
    with psycopg.connect(original, autocommit=True) as conn:
        before = conn.execute("SELECT * FROM cluster.identity").fetchall()
        assert call(original, "migrate", "--adopt") == (0, "nothing to do", "")
        assert conn.execute("SELECT * FROM cluster.identity").fetchall() == before


def test_a_dry_run_shows_how_a_copy_is_adopted_and_does_not_adopt_it(restored: str, call: Call) -> None:
    code, script, _ = call(restored, "migrate", "--adopt", "--dry-run")
    assert code == 0
    refusal(restored)
    with psycopg.connect(restored, autocommit=True) as conn:
        conn.execute(script.encode())
        check_identity(conn)


def test_a_database_without_a_record_is_accepted_and_recorded_by_the_next_migrate(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [GrantedJob])
    conn.execute("DELETE FROM cluster.identity")
    check_identity(conn)
    assert [line for line in planned_changes(conn, [GrantedJob]) if "cluster.identity" in line]
    migrate_schema(conn)
    assert conn.execute(RECORDED.encode()).fetchone() == conn.execute(HERE.encode()).fetchone()
    assert planned_changes(conn, [GrantedJob]) == []


@pytest.fixture
def server(pg_bin: Path) -> Iterator[EmbeddedPostgres]:
    """A server with a migrated database."""
    folder = make_run_folder()
    server = EmbeddedPostgres(folder / "data", pg_bin, fast=True)
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as conn:
            migrate_schema(conn)
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder)


def test_a_standby_that_is_promoted_goes_on_without_a_question(server: EmbeddedPostgres) -> None:
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as conn:
        assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
        wait_for(conn, "SELECT timeline_id = 2 FROM pg_control_checkpoint()")
        check_schema(conn, [])
        check_identity(conn)
