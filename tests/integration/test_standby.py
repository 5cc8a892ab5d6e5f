"""A server that only reads: commands that would write say so, those that read work."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cluster.embedded import EmbeddedPostgres
from cluster.migration import migrate_jobs, migrate_schema
from tests.integration.test_start_privileges import SOURCE, exit_of
from tests.support.nodes import job_classes, write_jobs
from tests.support.postgres import make_run_folder


@pytest.fixture
def standby(pg_bin: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a server in recovery, on which everything is there that a node needs."""
    write_jobs(tmp_path, SOURCE)
    folder = make_run_folder()
    server = EmbeddedPostgres(folder / "data", pg_bin, fast=True)
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            migrate_schema(connection)
            migrate_jobs(connection, job_classes(tmp_path))
        server.stop()
        (folder / "data" / "standby.signal").touch()
        server.start()
        yield server.url()
    finally:
        server.stop("immediate")
        shutil.rmtree(folder)


def command(url: str, folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *words],
        cwd=folder, env={"CLUSTER_DATABASE_URL": url, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.strip()


def test_a_standby_is_refused_by_what_would_write_and_read_by_the_rest(standby: str, tmp_path: Path) -> None:
    said = "the server is a standby, which only reads: point CLUSTER_DATABASE_URL at the primary"
    code, lines = exit_of(standby, tmp_path)
    assert (code, lines) == (5, [f"cluster: {said}"])
    assert command(standby, tmp_path, "migrate") == (5, f"cluster: {said}")
    assert command(standby, tmp_path, "migrate", "--dry-run") == (0, "nothing to do")
    assert command(standby, tmp_path, "status") == (0, "")
    code, line = command(standby, tmp_path, "enqueue", "GrantedJob")
    assert code == 1
    assert line.startswith("cluster: ")
    assert "read-only transaction" in line
    assert "\n" not in line
