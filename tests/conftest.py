"""Options, the Postgres of the run, one database per test, and the skips that markers ask for."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvloop

from cluster.embedded import EmbeddedPostgres
from tests.support.postgres import RunServer, make_run_folder, start_watcher
from tests.support.skips import SkipReport

ON_REQUEST = ("fault", "exhaustive", "systemd", "image")
RUN_FOLDER = pytest.StashKey[Path]()
RUN_SERVER = pytest.StashKey[RunServer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test PG=DIR` and continuous integration use these."""
    parser.addoption("--pg-bin", metavar="DIR", help="bin directory of the Postgres to test with (or TEST_PG_BIN)")
    parser.addoption(
        "--no-unexpected-skips",
        action="store_true",
        help="fail when a test is skipped for a reason that is not in tests/expected_skips.txt",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Workers take the folder from the controller; the controller, or the only process, makes and removes it."""
    config.pluginmanager.register(SkipReport(config), "skip-report")
    bin_dir = _bin_dir(config)
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[RUN_SERVER] = RunServer(Path(worker_input["run_folder"]), bin_dir)
        return
    folder = make_run_folder()
    config.stash[RUN_FOLDER] = folder
    server = config.stash[RUN_SERVER] = RunServer(folder, bin_dir)
    watcher = start_watcher(folder, bin_dir)
    config.add_cleanup(lambda: _end(server, watcher))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Most tests wait most of the time."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # Any: pytest-xdist has no types
    """Called in the controller for each worker of pytest-xdist."""
    node.workerinput["run_folder"] = str(node.config.stash[RUN_FOLDER])


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Async tests run on the loop that the workers run on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes minutes or needs more than Python, unless `-m` asks for it."""
    asked = str(config.getoption("-m"))
    left_out = [
        item for item in items if any(item.get_closest_marker(name) for name in ON_REQUEST if name not in asked)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.root` and `@pytest.mark.needs("psql")` skip with a reason where they can't run."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if shutil.which(program) is None:
                pytest.skip(f"needs the program {program}")


@pytest.fixture(scope="session")
def run_server(pytestconfig: pytest.Config) -> RunServer:
    """The Postgres of this test run, started."""
    server = pytestconfig.stash[RUN_SERVER]
    server.start()
    return server


@pytest.fixture(scope="session")
def pg_bin(pytestconfig: pytest.Config) -> Path:
    """The bin directory under test, for tests that run servers of their own."""
    return pytestconfig.stash[RUN_SERVER].postgres.bin_dir


@pytest.fixture(scope="session")
def postgres(run_server: RunServer) -> EmbeddedPostgres:
    """The server that all tests share: look, do not stop."""
    return run_server.postgres


@pytest.fixture
def empty_database_url(run_server: RunServer) -> Iterator[str]:
    """A new database without schema `cluster`."""
    with run_server.database() as url:
        yield url


@pytest.fixture
def database_url(run_server: RunServer) -> Iterator[str]:
    """A new database, migrated."""
    with run_server.database(run_server.template()) as url:
        yield url


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection in autocommit to this test's database."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def aconn(database_url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """An async connection in autocommit to this test's database."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


def _bin_dir(config: pytest.Config) -> Path | None:
    chosen = config.getoption("--pg-bin") or os.environ.get("TEST_PG_BIN")
    return Path(chosen).absolute() if chosen else None


def _end(server: RunServer, watcher: Any) -> None:
    server.end()
    watcher.communicate()
