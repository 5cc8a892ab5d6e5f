"""What docs/testing.md shows works as it says, on every kind of session."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import psycopg
import pytest

from cluster import Job, Secret
from cluster.errors import EnqueueError
from cluster.migration import migrate_jobs
from cluster.testing import assert_enqueued, assert_repeatable, refute_enqueued
from tests.support.postgres import RunServer
from tests.support.session_kinds import KINDS, settled

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in BLOCKS if kind == "python"}


@pytest.fixture
def page(conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the page's block. Any: of its names."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile(FILES["jobs.py"], "docs/testing.md", "exec", dont_inherit=True), vars(module))
    migrate_jobs(conn, [module.WelcomeJob])
    return module


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_project_of_the_page_passes_its_tests(run_server: RunServer, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    ((_, command),) = [block for block in BLOCKS if block[0] == "sh"]
    ran = subprocess.run(
        ["sh", "-c", f"{command.strip()} -p no:cacheprovider -s -p no:randomly"],
        cwd=tmp_path,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "URL": run_server.postgres.url(),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    tests = "".join(FILES.values()).count("\ndef test_")
    assert f"{tests} passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_bonus_is_shown_as_on_the_page(
    conn: psycopg.Connection, page: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("CREATE TABLE customers (id bigint PRIMARY KEY, credit int NOT NULL)")
    conn.execute("INSERT INTO customers VALUES (42, 1000)")
    migrate_jobs(conn, [page.BonusJob])
    monkeypatch.setenv("DATABASE_URL", database_url)
    with pytest.raises(AssertionError) as caught:
        assert_repeatable(page.BonusJob(customer_id=42), database_url)
    assert f"```text\n{caught.value}\n```" in PAGE


@pytest.mark.parametrize(
    "kind", ["psycopg-async", "core-pg8000", "session-psycopg", "async-session-asyncpg", "django", "asyncpg"]
)
async def test_the_transaction_of_the_test_is_enough(page: Any, database_url: str, kind: str) -> None:
    async with KINDS[kind](database_url) as opened:
        await settled(refute_enqueued(opened.session, page.WelcomeJob))
        await settled(page.WelcomeJob(customer_id=1).perform_later(opened.session))
        await settled(assert_enqueued(opened.session, page.WelcomeJob, customer_id=1, text="hello"))
        with pytest.raises(AssertionError, match="1 of 1 waiting jobs"):
            await settled(refute_enqueued(opened.session, page.WelcomeJob, customer_id=1))
        await settled(opened.end(False))


def test_a_failure_shows_the_nearest_misses_as_on_the_page(page: Any, conn: psycopg.Connection) -> None:
    with pytest.raises(
        AssertionError, match=r"^0 of 0 waiting jobs in welcome_jobs are WelcomeJob\(customer_id=43\), not one or more$"
    ):
        assert_enqueued(conn, page.WelcomeJob, customer_id=43)
    page.WelcomeJob(customer_id=42).perform_later(conn)
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(conn, page.WelcomeJob, customer_id=43)
    shown = PAGE.split("```text\n")[1].split("\n```")[0].splitlines()
    said = str(caught.value).splitlines()
    assert said[0] == shown[0]
    assert json.loads(said[1]) | {"run_at": ""} == json.loads(shown[1]) | {"run_at": ""}


def test_the_nearest_come_first_and_are_three(page: Any, conn: psycopg.Connection) -> None:
    for number in range(5):
        page.WelcomeJob(customer_id=number, text="far").perform_later(conn)
    page.WelcomeJob(customer_id=9, text="near").perform_later(conn)
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(conn, page.WelcomeJob, customer_id=8, text="near")
    shown = [json.loads(line)["text"] for line in str(caught.value).splitlines()[1:]]
    assert shown == ["near", "far", "far"]


def test_a_job_that_is_due_too_late_or_has_begun_or_is_one_too_many_is_not_found(
    page: Any, conn: psycopg.Connection
) -> None:
    page.WelcomeJob(customer_id=1).perform_later(conn, delay=timedelta(hours=2))
    assert_enqueued(conn, page.WelcomeJob, within=timedelta(hours=3))
    refute_enqueued(conn, page.WelcomeJob, within=timedelta(hours=1))
    with pytest.raises(AssertionError, match="not 2"):
        assert_enqueued(conn, page.WelcomeJob, count=2)
    conn.execute("SELECT cluster.cancel('welcome_jobs', 1)")
    refute_enqueued(conn, page.WelcomeJob)


class TokenJob(Job):
    token: Annotated[str, Secret()]

    def perform(self) -> None: ...


def test_secrets_are_not_shown(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [TokenJob])
    TokenJob(token="s3cret-word").perform_later(conn)
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(conn, TokenJob, token="another-word")
    assert "word" not in str(caught.value)


def test_a_misspelt_field_is_refused_and_not_refuted(page: Any, conn: psycopg.Connection) -> None:
    with pytest.raises(EnqueueError, match="WelcomeJob has no field 'custmer_id': did you mean 'customer_id'"):
        refute_enqueued(conn, page.WelcomeJob, custmer_id=1)
