"""What docs/testing.md shows works as it says, on every kind of session."""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from cluster.errors import EnqueueError
from cluster.migration import migrate_jobs
from cluster.testing import assert_enqueued, refute_enqueued
from tests.support.session_kinds import KINDS, settled

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text(encoding="utf-8")


@pytest.fixture
def page(conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the page's block. Any: of its names."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/testing.md", "exec", dont_inherit=True), vars(module))
    migrate_jobs(conn, [module.WelcomeJob])
    return module


def test_the_tests_of_the_page_pass(page: Any, conn: psycopg.Connection) -> None:
    page.test_a_customer_is_welcomed_once(conn)
    page.test_the_welcome_is_friendly()


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


def test_a_misspelt_field_is_refused_and_not_refuted(page: Any, conn: psycopg.Connection) -> None:
    with pytest.raises(EnqueueError, match="WelcomeJob has no field 'custmer_id': did you mean 'customer_id'"):
        refute_enqueued(conn, page.WelcomeJob, custmer_id=1)
