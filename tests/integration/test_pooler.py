"""Behind PgBouncer in transaction mode, where a node can set nothing for its sessions: so it looks what they are set to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cluster.errors import ExitCode, SchemaMisfitError
from cluster.migration import migrate_jobs
from cluster.plan import LARGE
from tests.integration.conftest import RunNode
from tests.integration.test_neighbours import SOURCE, node_grants
from tests.integration.test_start_privileges import GrantedJob, exit_of
from tests.support.nodes import free_port, wait_for, wait_until
from tests.support.pooler import PROGRAM, Pooler
from tests.support.postgres import make_run_folder

pytestmark = pytest.mark.needs(PROGRAM)


@pytest.fixture
def role(conn: psycopg.Connection) -> Iterator[str]:
    """A node's role, whose settings a test may change."""
    migrate_jobs(conn, [GrantedJob])
    name = f"pooled_{uuid4().hex[:8]}"
    conn.execute(f"CREATE ROLE {name} LOGIN; {node_grants().replace('{role}', name)}".encode())
    yield name
    conn.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())


@pytest.fixture
def url(database_url: str, role: str) -> Iterator[str]:
    """The test's database as this role, through a pooler."""
    server = conninfo_to_dict(database_url)
    folder = make_run_folder()  # that nobody may read
    database = (
        f"host={server['host']} port={server.get('port', 5432)} dbname={server['dbname']} user={role} pool_size=6"
    )
    pooler = Pooler(folder, free_port(), "pooled", database, owner=Path(str(server["host"])))
    pooler.start()
    try:
        wait_until(pooler.is_up, "the pooler is up")
        yield f"postgresql://{role}@127.0.0.1:{pooler.port}/pooled"
    finally:
        pooler.stop()
        shutil.rmtree(folder)


def test_a_read_only_default_is_refused_at_the_start(
    conn: psycopg.Connection, role: str, url: str, tmp_path: Path
) -> None:
    conn.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on".encode())
    code, lines = exit_of(url, tmp_path)
    assert (code, len(lines)) == (ExitCode.SCHEMA_MISFIT, 1)
    assert "default_transaction_read_only is on behind the pooler, and a node writes" in lines[0]
    assert f"ALTER ROLE {role} SET default_transaction_read_only = 'off'" in lines[0]


def test_other_settings_are_named_and_jobs_run(
    conn: psycopg.Connection, database_url: str, role: str, url: str, run_node: RunNode
) -> None:
    settings = {"default_transaction_isolation": "serializable", "statement_timeout": "9s"}
    for name, value in settings.items():
        conn.execute(f"ALTER ROLE {role} SET {name} = '{value}'".encode())
    node = run_node(SOURCE, url=url, direct_database_url=database_url)
    named = {line["setting"]: line["hint"] for line in node.log("unsuitable_setting")}
    assert named.keys() == settings.keys()
    assert f"ALTER ROLE {role} SET statement_timeout = " in named["statement_timeout"]
    conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")


def test_what_can_not_be_built_through_a_pooler_is_refused_with_the_remedy(
    conn: psycopg.Connection, role: str, url: str
) -> None:
    conn.execute(
        f"ALTER TABLE granted_jobs OWNER TO {role}; GRANT INSERT, UPDATE ON cluster.job_types TO {role}".encode()
    )
    conn.execute(
        "INSERT INTO granted_jobs (last_error) SELECT repeat('x', 1500) FROM generate_series(1, %s)", [LARGE // 1400]
    )
    conn.execute("DROP INDEX granted_jobs_due")
    said = "can't be built through a pooler: set CLUSTER_DIRECT_DATABASE_URL"
    with (
        psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection,
        pytest.raises(SchemaMisfitError, match=said),
    ):
        migrate_jobs(connection, [GrantedJob])
    migrate_jobs(conn, [GrantedJob])
