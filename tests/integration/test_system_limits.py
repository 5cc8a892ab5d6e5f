"""What the system does not let a node have is said in one line."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from cluster.coordinator.system_limits import FILES, FILES_OF_WORKER, explained
from cluster.migration import migrate_jobs
from tests.support.nodes import COMMAND, job_classes, running_node, write_jobs

SOURCE = """
from cluster import Job

class SmallJob(Job):
    def perform(self): ...
"""


@pytest.fixture
def folder(conn: psycopg.Connection, tmp_path: Path) -> Path:
    """Of an application whose table is there."""
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))
    return tmp_path


def refusal(url: str, folder: Path, files: tuple[int, int] | None = None, **environment: str) -> tuple[int, str]:
    """Exit code and the line on stderr of `cluster run`. files: soft and hard limit of open files."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, files)

    done = subprocess.run(
        [sys.executable, *COMMAND],
        cwd=folder,
        env=os.environ | {"CLUSTER_DATABASE_URL": url, "CLUSTER_HTTP_PORT": "0"} | environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()[-1]


def test_a_limit_of_open_files_that_is_too_low_is_refused(folder: Path, database_url: str) -> None:
    code, line = refusal(database_url, folder, (100, 100), CLUSTER_PROCESSES="3")
    assert code == 2
    needed = FILES + 3 * FILES_OF_WORKER
    assert line.startswith(
        f"cluster: a node with CLUSTER_PROCESSES=3 needs {needed} open files, and the system allows 100: raise"
    )


def test_a_limit_of_open_files_that_may_be_raised_is_raised(database_url: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (90, hard))
    try:
        with running_node(database_url, tmp_path, SOURCE) as node:
            limits = Path(f"/proc/{node.pid}/limits")
            if limits.exists():
                [line] = [line for line in limits.read_text().splitlines() if line.startswith("Max open files")]
                assert int(line.split()[3]) == FILES + 2 * FILES_OF_WORKER
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_path_of_temporary_files_that_is_too_long_is_named(folder: Path, database_url: str) -> None:
    long = folder / ("x" * 120)
    long.mkdir()
    code, line = refusal(database_url, folder, TMPDIR=str(long), CLUSTER_PROCESSES="1")
    assert code == 1
    assert "can't start worker processes: the path of temporary files is too long for a socket" in line
    assert line.endswith("set TMPDIR to a shorter one")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system"), "can't be written (Read-only file system): set TMPDIR"),
        (OSError(errno.ENOSPC, "No space left on device"), "see that /dev/shm is not full"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found"),
            "(No usable temporary directory found)",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit (ulimit -n, LimitNOFILE="),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
    ],
)
def test_what_the_system_refuses_is_named_with_what_to_do(error: OSError, said: str) -> None:
    assert said in explained(error)


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError(), TimeoutError()])
def test_the_death_of_the_forkserver_is_not_the_systems_refusal(error: OSError) -> None:
    assert explained(error) == ""
