"""`cluster dashboard`, as the process that users start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "cluster", "dashboard")


def environment(url: str, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTER_", "PG"))}
    return kept | {"CLUSTER_DATABASE_URL": url} | variables


@contextmanager
def serving(folder: Path, url: str, *options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it has printed."""
    with subprocess.Popen(
        [*COMMAND, "--port", "0", *options], cwd=folder, env=environment(url, **variables), stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert line.startswith("dashboard: http://"), line
            yield process, line.split()[1]
        finally:
            process.kill()


def test_it_serves_below_its_prefix_and_stops_at_a_signal_while_somebody_watches(
    tmp_path: Path, database_url: str
) -> None:
    with serving(tmp_path, database_url, "--auth", "none", CLUSTER_DASHBOARD_PREFIX="/ops/jobs") as (process, address):
        assert address.endswith("/ops/jobs/")
        with urllib.request.urlopen(address, timeout=20) as page:
            assert "There are no job tables yet" in page.read().decode()
        root = address.removesuffix("ops/jobs/")
        with urllib.request.urlopen(root, timeout=20) as page:
            assert page.url == address
        with urllib.request.urlopen(f"{address}live", timeout=20) as watching:
            assert watching.readline().startswith(b"retry:")
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "set CLUSTER_DASHBOARD_USER and CLUSTER_DASHBOARD_PASSWORD"),
        (("--auth", "none", "--host", "0.0.0.0"), "is for loopback only"),
        (("--auth", "nowhere:function"), "No module named 'nowhere'"),
    ],
)
def test_it_does_not_start_where_everybody_could_get_in(
    tmp_path: Path, database_url: str, options: tuple[str, ...], said: str
) -> None:
    ended = subprocess.run(
        [*COMMAND, "--port", "0", *options], cwd=tmp_path, env=environment(database_url), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
