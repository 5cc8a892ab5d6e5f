"""Two neighbouring versions side by side: the present one, and a made-up next one with one migration more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

import cluster
from cluster.errors import ExitCode
from tests.integration.conftest import RunNode
from tests.integration.test_start_privileges import exit_of
from tests.support.nodes import NodeProcess, wait_for, write_jobs

SOURCE = """
import asyncio
from cluster import Job

class GrantedJob(Job):
    number: int = 0
    async def perform(self):
        await asyncio.sleep(self.number)
"""
MORE = """: a standard column, a column of nodes, and a table of its own
ALTER FUNCTION cluster.standard_columns() RENAME TO standard_columns_before;
CREATE FUNCTION cluster.standard_columns() RETURNS TABLE (name text, type text, definition text) LANGUAGE sql IMMUTABLE AS $$
    SELECT * FROM cluster.standard_columns_before() UNION ALL VALUES ('region', 'text', 'NOT NULL DEFAULT ''north''')
$$;
ALTER TABLE cluster.nodes ADD COLUMN region text NOT NULL DEFAULT 'north';
CREATE TABLE cluster.regions (name text PRIMARY KEY);
"""


def next_version(folder: Path, kind: str) -> Path:
    """An application whose folder has the package of the next version, which Python finds before the installed one."""
    shutil.copytree(Path(cluster.__file__).parent, folder / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    migrations = folder / "cluster/sql/migrations"
    (migrations / f"{len(list(migrations.glob('*.sql'))) + 1:04}_regions.sql").write_text(f"-- {kind}{MORE}")
    write_jobs(folder, SOURCE)
    return folder


def migrate(folder: Path, url: str) -> str:
    """What `cluster migrate` of that version says."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "migrate"],
        cwd=folder, env={"CLUSTER_DATABASE_URL": url, "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@contextmanager
def one_slot(url: str, folder: Path) -> Iterator[NodeProcess]:
    """A node that can perform one job at a time; ready."""
    node = NodeProcess(url, folder, processes=1, concurrency=1)
    node.start()
    try:
        node.wait_ready()
        yield node
    finally:
        node.clean_up()


PERFORMED = "SELECT bool_and(status = 'succeeded') FROM granted_jobs"


def test_old_and_new_nodes_work_side_by_side_on_an_expanded_schema(
    conn: psycopg.Connection, database_url: str, run_node: RunNode, tmp_path: Path
) -> None:
    old = run_node(SOURCE, processes=1, concurrency=1)
    newer = next_version(tmp_path / "newer", "expand")
    said = migrate(newer, database_url)
    assert "_regions" in said
    assert "table granted_jobs: completed" in said

    conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
    wait_for(conn, PERFORMED)  # by the old node, which has seen the schema change under it

    with one_slot(database_url, newer) as new, one_slot(database_url, old.app_dir) as restarted:
        conn.execute("INSERT INTO granted_jobs (number) VALUES (1), (1), (1)")
        wait_for(conn, "SELECT count(DISTINCT locked_by) = 3 FROM granted_jobs WHERE status = 'running'")
        wait_for(conn, PERFORMED)
        assert (old.stop(), restarted.stop()) == (0, 0)
        conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
        wait_for(conn, PERFORMED)
        for node in (old, new, restarted):
            assert not [line for line in node.log() if line.get("level") in {"warning", "error"}]


def test_an_old_node_does_not_start_after_a_contract_migration(
    conn: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    newer = next_version(tmp_path / "newer", "contract")
    migrate(newer, database_url)
    code, lines = exit_of(database_url, tmp_path / "old")
    assert code == ExitCode.SCHEMA_MISFIT
    assert lines == ["cluster: schema cluster is newer than this version (regions): upgrade jobcluster here"]
    conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
    with one_slot(database_url, newer):
        wait_for(conn, PERFORMED)
