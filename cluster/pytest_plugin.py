"""The pytest plugin: fixtures `cluster_database` and `cluster_node`, and to be overridden, `cluster_jobs` and `cluster_prepare`.

pytest loads it in every run of an environment that has the package, so nothing is imported before a fixture is asked for.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cluster.job import Job
    from cluster.testing.node_process import StartNode
    from cluster.testing.server import Cleaner

_FOLDER = "cluster_folder"
_URLS = ("CLUSTER_DATABASE_URL", "CLUSTER_DIRECT_DATABASE_URL", "DATABASE_URL")


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option, for who has a server."""
    parser.getgroup("cluster").addoption(
        "--cluster-database-url",
        metavar="URL",
        help="make the databases of tests on this server (or CLUSTER_DATABASE_URL; else on an embedded Postgres)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # Any: pytest-xdist has no types
    """Called for each worker of pytest-xdist, in the process that begins and ends the run."""
    node.workerinput[_FOLDER] = str(folder_of_run(os.getpid()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the server, or the databases, of a run that had some."""
    folder = _folder(config)
    if not hasattr(config, "workerinput") and folder.exists():
        from cluster.testing.server import TestServer

        TestServer(folder, _server_url(config)).end()


def folder_of_run(pid: int | str) -> Path:
    """pid: of the process that begins it, so that the next run finds what a killed one has left."""
    return Path(tempfile.gettempdir(), f"jobcluster-pytest-{os.getuid()}-{pid}")


@pytest.fixture(scope="session")
def cluster_jobs(pytestconfig: pytest.Config) -> list[type[Job]]:
    """The job classes that have tables in the tests' database: of CLUSTER_JOBS, or package `jobs`. Override it for others."""
    from cluster.discovery import import_jobs
    from cluster.settings import load_settings

    names = load_settings().jobs or (("jobs",) if (pytestconfig.rootpath / "jobs").is_dir() else ())
    return import_jobs(names, pytestconfig.rootpath) if names else []


@pytest.fixture(scope="session")
def cluster_prepare() -> Callable[[str], object]:
    """Override it: a function that makes the application's own tables, at the URL of an empty database; job tables come after."""
    return lambda url: None


@pytest.fixture(scope="session")
def _cluster_database(
    pytestconfig: pytest.Config, cluster_jobs: list[type[Job]], cluster_prepare: Callable[[str], object]
) -> Iterator[tuple[str, Cleaner]]:
    """One database for each process of the run, so that an application may keep its engines and pools."""
    from cluster.testing.server import Cleaner, TestServer

    worker = getattr(pytestconfig, "workerinput", {}).get("workerid", "main")
    server = TestServer(_folder(pytestconfig), _server_url(pytestconfig))
    with server.database(worker, cluster_jobs, cluster_prepare) as url:
        yield url, Cleaner(url, cluster_jobs)


@pytest.fixture
def cluster_database(_cluster_database: tuple[str, Cleaner]) -> Iterator[str]:
    """The URL of a real database with the application's tables and job tables, empty before each test. While the test runs,
    DATABASE_URL and CLUSTER_DATABASE_URL name it."""
    url, cleaner = _cluster_database
    before = {name: os.environ.get(name) for name in _URLS}
    os.environ.update(dict.fromkeys(_URLS, url))
    try:
        yield url
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        cleaner.clean()


@pytest.fixture
def cluster_node(
    cluster_database: str,
    cluster_jobs: list[type[Job]],
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartNode]:
    """Starts real nodes, with worker processes, on the test's database: `cluster_node()`, or `cluster_node(queues="email")`."""
    from cluster.testing.node_process import nodes

    modules = ",".join(sorted({job_class.__module__ for job_class in cluster_jobs}))
    with nodes(cluster_database, pytestconfig.rootpath, tmp_path_factory.mktemp("nodes"), jobs=modules) as start:
        yield start


def _folder(config: pytest.Config) -> Path:
    return Path(getattr(config, "workerinput", {}).get(_FOLDER, folder_of_run(os.getpid())))


def _server_url(config: pytest.Config) -> str | None:
    """None: an embedded one."""
    given: str | None = config.getoption("--cluster-database-url")
    return given or os.environ.get("CLUSTER_DATABASE_URL") or None
