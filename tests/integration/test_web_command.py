"""`cluster dashboard`, as the process that users start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import psycopg
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
        for path in ("", "ops/jobs"):
            with urllib.request.urlopen(f"{root}{path}", timeout=20) as page:
                assert page.url == address
        with urllib.request.urlopen(f"{root}livez", timeout=20) as page:
            assert page.read() == b"ok\n"
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
        (("--auth", "header"), "name its addresses with CLUSTER_DASHBOARD_PROXIES"),
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


def test_two_of_them_with_one_secret_behind_a_proxy_take_each_others_forms(
    tmp_path: Path, database_url: str, conn: psycopg.Connection
) -> None:
    conn.execute("SELECT cluster.create_job_table('mail_jobs')")
    conn.execute("INSERT INTO mail_jobs DEFAULT VALUES")
    settings = {
        "CLUSTER_DASHBOARD_AUTH": "header", "CLUSTER_DASHBOARD_PROXIES": "127.0.0.1", "CLUSTER_DASHBOARD_SECRET": "s" * 32,
        "CLUSTER_DASHBOARD_GROUPS_HEADER": "X-Forwarded-Groups", "CLUSTER_DASHBOARD_ROLES": "@on-call=operator,*=viewer",
    }  # fmt: skip

    def ask(address: str, path: str, headers: dict[str, str], form: dict[str, str] | None = None) -> str:
        body = urlencode(form).encode() if form else None
        request = urllib.request.Request(address + path, body, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: str = answer.read().decode()
            return found

    ann = {"x-forwarded-user": "ann", "x-forwarded-groups": "sales, on-call", "accept": "application/json"}
    with (
        serving(tmp_path, database_url, **settings) as (_, one),
        serving(tmp_path, database_url, **settings) as (_, two),
    ):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(one, "mail_jobs/1", {})
        token = json.loads(ask(one, "mail_jobs/1", ann))["token"]
        assert "is cancelled" in ask(two, "mail_jobs/1/cancel", ann, {"token": token})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask(two, "mail_jobs/1/retry", ann | {"x-forwarded-groups": "sales"}, {"token": token})
    assert conn.execute("SELECT who, action FROM cluster.audit").fetchall() == [("ann", "cancel")]
