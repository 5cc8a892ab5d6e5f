"""`cluster.migrate()`, and that it and the command say what they did before they failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import psycopg
import pytest

import cluster
from cluster import Job, References
from cluster.errors import ClusterError, SchemaMisfitError
from tests.support.nodes import write_jobs

FIRST = "\nclass AJob(Job):\n    def perform(self): ...\n"
LINKED = "\nclass BJob(Job):\n    user_id: Annotated[int, References('users.id')]\n    def perform(self): ...\n"
SOURCE = f"from typing import Annotated\nfrom cluster import Job, References\n{FIRST}{LINKED}"


class PlainJob(Job):
    def perform(self) -> None: ...


class LinkedJob(Job):
    user_id: Annotated[int, References("users.id")]

    def perform(self) -> None: ...


def test_it_makes_schema_and_tables_once_on_a_connection_which_it_leaves_as_it_was(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        done = cluster.migrate(connection, [PlainJob])
        assert done[-1] == "table plain_jobs: created"
        assert done[0].startswith("schema cluster: 0001_")
        assert cluster.migrate(connection, [PlainJob]) == []
        assert not connection.autocommit
        connection.execute("SELECT 1")
        with pytest.raises(ClusterError, match="the connection is in a transaction: commit first"):
            cluster.migrate(connection, [PlainJob])


def test_it_takes_modules_and_the_settings_and_refuses_a_bare_name(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jobs(tmp_path, {"settled": "from cluster import Job\n" + FIRST})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name != "jobs"})
    monkeypatch.setenv("CLUSTER_DATABASE_URL", database_url)
    assert cluster.migrate() == ["table a_jobs: created"]
    assert cluster.migrate(database_url, ["jobs.settled", PlainJob]) == ["table plain_jobs: created"]
    with pytest.raises(ClusterError, match=r'jobs is a list, such as \["jobs"\]'):
        cluster.migrate(database_url, "jobs")


def test_what_was_done_before_an_error_stays_and_is_told_with_what_to_do_first(database_url: str) -> None:
    with pytest.raises(
        SchemaMisfitError, match="run your own migrations first: table users, which column user_id"
    ) as caught:
        cluster.migrate(database_url, [PlainJob, LinkedJob])
    assert caught.value.__notes__ == ["done before: table plain_jobs: created"]
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE users (id bigint PRIMARY KEY)")
    assert cluster.migrate(database_url, [PlainJob, LinkedJob]) == ["table linked_jobs: created"]


def test_the_command_says_what_it_did_before_it_failed(database_url: str, tmp_path: Path) -> None:
    write_jobs(tmp_path, SOURCE)
    command = [sys.executable, "-m", "cluster", "migrate"]
    ran = subprocess.run(
        command, cwd=tmp_path, env={"CLUSTER_DATABASE_URL": database_url}, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "table a_jobs: created\n"
    assert ran.stderr == (
        "cluster: table b_jobs of BJob: run your own migrations first: table users, which column user_id refers to, is not there\n"
    )
    assert ran.returncode == 5
