"""`cluster errors`."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.cli.errors import bars
from tests.support.rows import run

TRACE = 'Traceback (most recent call last):\n  File "jobs.py", line 7, in perform\nLookupError: no customer 42'


@pytest.fixture(autouse=True)
def failures(conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(conn, "SELECT cluster.create_job_table('mail_jobs'), cluster.create_job_table('sms_jobs')")
    run(conn, "UPDATE cluster.job_types SET name = 'EmailCustomersAgainJob' WHERE job_table = 'mail_jobs'::regclass")
    failure = """INSERT INTO cluster.failures SELECT %s::regclass, n, 1, now() - %s::interval, NULL, 'retry', %s, %s
                 FROM generate_series(1, %s) AS n"""
    run(conn, failure, "mail_jobs", "30 minutes", "0123456789ab", TRACE, 12)
    run(conn, failure, "sms_jobs", "3 hours", "0123456789ab", TRACE, 1)
    run(conn, failure, "sms_jobs", "2 days", "timeout", "timed out after 3 s; it was stopped here:\n…", 5001)


def call(url: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["errors", *words], env={"CLUSTER_DATABASE_URL": url, "COLUMNS": "80"})


def test_errors_are_listed_within_80_columns(database_url: str) -> None:
    shown = call(database_url)
    assert shown.exit_code == 0
    (line,) = [line for line in shown.stdout.splitlines() if "0123456789ab" in line]
    assert line.split()[1:3] == ["13", "30m"]
    assert "LookupError: no cust" in line
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert "5,000+" in call(database_url, "--since", "7d").stdout
    assert call(database_url, "--since", "1m").stderr == "no attempt has failed in the last 1m\n"
    assert call(database_url, "--since", "soon").exit_code == 2


def test_one_error_is_shown_with_its_types_jobs_and_traceback(database_url: str) -> None:
    shown = call(database_url, "0123456789ab").stdout
    assert shown.startswith("LookupError: no customer 42\n13 failed attempts in the last 24h")
    assert "EmailCustomersAgainJob 12, sms_jobs 1" in shown
    assert "  mail_jobs 12, attempt 1\n" in shown
    assert shown.rstrip().endswith(TRACE)
    refused = call(database_url, "nonsense")
    assert (refused.exit_code, refused.stderr.startswith("cluster: no attempt has failed with nonsense")) == (1, True)


def test_errors_are_there_for_machines(database_url: str) -> None:
    (group,) = json.loads(call(database_url, "--json").stdout)
    assert {key: group[key] for key in ("fingerprint", "attempts", "recent", "outcome", "title", "types")} == {
        "fingerprint": "0123456789ab", "attempts": 13, "recent": 0, "outcome": "retry", "title": "LookupError: no customer 42",
        "types": {"EmailCustomersAgainJob": 12, "sms_jobs": 1},
    }  # fmt: skip
    assert sum(group["trend"]) == 13
    (one,) = json.loads(call(database_url, "0123456789ab", "--json").stdout)
    assert len(one["jobs"]) == 10


def test_a_trend_is_drawn_from_the_most() -> None:
    assert bars([0, 1, 50, 100]) == "·▁▄█"
    assert bars([]) == ""
