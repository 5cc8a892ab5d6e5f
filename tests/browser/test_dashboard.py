"""The dashboard in a real browser, with a node at work."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Page, expect

from tests.support.nodes import running_node
from tests.support.rows import run

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]

SOURCE = """
from cluster import Job

class LetterJob(Job):
    reader: int
    fails: bool = False
    max_attempts = 1

    async def perform(self):
        if self.fails:
            raise ValueError(f"reader {self.reader} has no address")
"""


def test_an_incident_is_seen_live_and_exactly_those_jobs_are_retried(
    page: Page, address: str, conn: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    with running_node(database_url, tmp_path / "app", SOURCE):
        go_through_an_incident(page, address, conn)


def go_through_an_incident(page: Page, address: str, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO letter_jobs (reader) SELECT n FROM generate_series(1, 5) n")
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_have_text("All is well")
    run(conn, "INSERT INTO letter_jobs (reader, fails) SELECT n, true FROM generate_series(1, 20) n")
    finding = page.get_by_role("listitem").filter(has_text="of its newest jobs fail")
    expect(finding).to_be_visible()  # without a reload
    page.get_by_role("link", name="20", exact=True).click()
    page.get_by_role("link", name="ValueError: reader … has no address").click()
    run(conn, "UPDATE letter_jobs SET fails = false")
    page.get_by_role("link", name="Retry …").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry 20 jobs?")
    page.get_by_role("button", name="Retry 20 jobs").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry: done", timeout=10_000)
    page.goto(address)
    expect(finding).to_have_count(0, timeout=10_000)
    assert run(conn, "SELECT status::text, count(*) FROM letter_jobs GROUP BY status") == [("succeeded", 25)]


def test_every_page_fits_a_phone_and_a_desk_and_works_by_keyboard(
    page: Page, address: str, conn: psycopg.Connection
) -> None:
    run(
        conn,
        "SELECT cluster.create_job_table('letter_jobs'); INSERT INTO letter_jobs (queue) VALUES ('a'), ('b'), ('c')",
    )
    paths = (
        "",
        "letter_jobs",
        "letter_jobs?status=failed",
        "letter_jobs/1",
        "letter_jobs/new",
        "queues",
        "nodes",
        "audit",
    )
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for path in paths:
            page.goto(address + path)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
    page.goto(f"{address}letter_jobs")
    page.keyboard.press("/")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Job 2")
