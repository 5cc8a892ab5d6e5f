"""`cluster init`: a `jobs` package with one example and its test, `conftest.py`, and `.env.example`."""

from __future__ import annotations

import typer

JOBS_PACKAGE = '"""The jobs of this application, a module for each."""\n'

_HELLO = '''\
"""An example. Delete it, and its test, when you have a job of your own."""

from cluster import Job


class HelloJob(Job):
    """Greets somebody. One row of table hello_jobs is one greeting."""

    name: str

    async def perform(self) -> None:
        """Logs the greeting."""
        self.log.info(self.greeting())

    def greeting(self) -> str:
        """What to say."""
        return f"Hello, {self.name}!"
'''

_HELLO_TEST = '''\
"""HelloJob greets by name."""

import psycopg
from cluster.testing import assert_enqueued, drain

from jobs.hello import HelloJob


def test_hello_greets_by_name() -> None:
    assert HelloJob(name="World").greeting() == "Hello, World!"


def test_hello_performs(cluster_database: str) -> None:
    with psycopg.connect(cluster_database) as connection:
        HelloJob(name="World").perform_later(connection)
        assert_enqueued(connection, HelloJob, name="World")
    (performed,) = drain(cluster_database)
    assert performed.status == "succeeded", performed.error
'''

_CONFTEST = '''\
"""Beside package jobs, so that plain `pytest` finds it. The fixtures cluster_database and cluster_node come with jobcluster."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def cluster_prepare() -> Callable[[str], None]:
    """Makes the application's own tables in the database of tests; job tables come after them."""

    def prepare(url: str) -> None:
        """Your migrations, on the database at this URL."""

    return prepare
'''

_NEXT_STEPS = """
Next:
  cluster dev                            a node that reloads, and its Postgres
  cluster enqueue HelloJob name=World    in another terminal
  cluster status                         what became of it
  cluster generate job EmailCustomers customer_id:int
  pytest                                 the tests
"""


def init() -> None:
    """Write a jobs package with an example and its test, and conftest.py."""
    from cluster.cli.files import write_new

    write_new("jobs/__init__.py", JOBS_PACKAGE)
    write_new("jobs/hello.py", _HELLO)
    write_new("tests/jobs/test_hello.py", _HELLO_TEST)
    write_new("conftest.py", _CONFTEST)
    write_new(".env.example", _env_example())
    typer.echo(_NEXT_STEPS, nl=False)


def _env_example() -> str:
    from cluster.cli.environment_file import environment_file

    return (
        "# Settings of the job cluster: copy to .env and remove the # of what you change.\n"
        "# Nodes read the environment only: `set -a; . ./.env; set +a` before `cluster run`,\n"
        "# or let your process manager load the file.\n\n"
    ) + environment_file()
