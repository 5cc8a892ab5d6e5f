"""A node that runs is drained in a real browser, by keyboard, and what waits for it says so."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_dashboard import SOURCE
from tests.support.nodes import running_node, wait_until
from tests.support.rows import run

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]


def test_a_node_is_drained_and_a_job_says_that_it_waits_for_it(
    page: Page,
    address: str,
    conn: psycopg.Connection,
    database_url: str,
    tmp_path: Path,
) -> None:
    with running_node(database_url, tmp_path / "app", SOURCE) as node:
        page.goto(f"{address}nodes")
        page.get_by_role("rowheader").get_by_role("link").click()
        page.locator("summary", has_text="Drain").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Why").fill("new disks")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("claims nothing more")
        wait_until(lambda: node.get("/readyz") == 503, "it drains")
        run(conn, "INSERT INTO letter_jobs (reader) VALUES (1)")
        page.goto(f"{address}letter_jobs/1")
        expect(page.get_by_role("region", name="What it waits for")).to_contain_text("new disks")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(f"{address}nodes")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("rowheader").get_by_role("link").click()
        page.get_by_role("button", name="Let it claim again").click()
        wait_until(lambda: run(conn, "SELECT status::text FROM letter_jobs") == [("succeeded",)], "the job has run")
