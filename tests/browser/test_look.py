"""How every page looks: axe finds nothing, in light and dark; no page is wider than a phone. And the screenshots of the docs.

With SCREENSHOTS=folder it leaves pictures of all of them there, to be looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page

from cluster.fingerprint import fingerprint
from tests.support.showcase import LONG, MAIL_ERROR, shop

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.needs("chromium")]

ROOT = Path(__file__).parents[2]
PAGES = {
    "overview": "", "jobs": "email_customers_jobs", "failed": "email_customers_jobs?status=failed",
    "job": "email_customers_jobs/1000", "new": "report_jobs/new", "bulk": "email_customers_jobs/bulk/retry?status=failed",
    "errors": "errors", "error": f"errors/{fingerprint('failed', MAIL_ERROR)}", "charts": "charts",
    "queues": "queues", "nodes": "nodes", "node": "nodes/00000000-0000-0000-0000-000000000001",
    "audit": "audit", "schedules": "schedules",
    "schedule": "schedules/show?name=stock", "schedule-broken": "schedules/show?name=thumbnails",
    "schedule-code": "schedules/show?name=ReportJob.daily", "schedule-long": f"schedules/show?name={LONG}",
    "schedule-edit": "schedules/edit?name=newsletter", "schedule-type": "schedules/new",
    "schedule-new": "schedules/new?table=report_jobs", "backfill": "schedules/backfill?name=stock&from=",
}  # fmt: skip
EMPTY = ("overview", "jobs", "errors", "queues", "nodes", "audit", "schedules")
DOCS = {
    "dashboard": "overview",
    "dashboard-failed": "failed",
    "dashboard-schedule": "schedule",
    "dashboard-form": "schedule-edit",
}
"""Screenshots in docs/images, and the pages that they show."""
SCREENSHOTS = os.environ.get("SCREENSHOTS")
Scheme = Literal["light", "dark"]


def see(page: Page, width: int, scheme: Scheme) -> None:
    page.set_viewport_size({"width": width, "height": 812 if width < 500 else 900})
    page.emulate_media(color_scheme=scheme)


def shoot(page: Page, name: str) -> None:
    for width in (375, 1280):
        for scheme in ("light", "dark"):
            see(page, width, scheme)
            page.screenshot(path=Path(SCREENSHOTS or "") / f"{name}-{width}-{scheme}.png", full_page=True)


def faults(page: Page, **options: object) -> list[tuple[str, str, str]]:
    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [(each["id"], node["html"], node["failureSummary"]) for each in found for node in each["nodes"]]


def go_through(page: Page, address: str, names: dict[str, str], data: str) -> None:
    for name, path in names.items():
        see(page, 1280, "light")
        page.goto(address + path)
        assert faults(page) == [], (name, "light")
        see(page, 1280, "dark")
        assert faults(page, runOnly=["color-contrast"]) == [], (name, "dark")
        see(page, 375, "dark")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if SCREENSHOTS:
            shoot(page, f"{data}-{name}")


def test_axe_finds_nothing_on_any_page_and_a_phone_scrolls_in_one_direction_only(
    page: Page, address: str, conn: psycopg.Connection
) -> None:
    shop(conn)
    go_through(page, address, PAGES, "many")


@pytest.mark.parametrize("how_much", ["none", "few"])
def test_pages_with_little_on_them_are_as_good(
    page: Page, address: str, conn: psycopg.Connection, how_much: str
) -> None:
    shop(conn, how_much)
    go_through(page, address, {name: PAGES[name] for name in EMPTY}, how_much)


def test_keys_and_palette_are_as_good(page: Page, address: str, conn: psycopg.Connection) -> None:
    shop(conn)
    page.goto(f"{address}schedules/show?name=stock")
    for keys in (["?"], ["Escape", "Control+k", "j", "o", "b"], ["Escape", "p"]):
        for key in keys:
            page.keyboard.press(key)
        assert faults(page) == [], keys
        if SCREENSHOTS:
            shoot(page, f"keys-{len(keys)}")


def test_the_screenshots_of_the_docs_show_pages_of_today(
    page: Page, address: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    """`make screenshots` keeps them."""
    shop(conn)
    folder = ROOT / "docs/images" if os.environ.get("KEEP_SCREENSHOTS") else tmp_path
    see(page, 1280, "light")
    for name, shown in DOCS.items():
        page.goto(address + PAGES[shown])
        page.wait_for_load_state("load")
        path = folder / f"{name}.png"
        page.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(path, optimize=True)
        assert path.stat().st_size < 150_000, name
        kept = ROOT / "docs/images" / path.name
        assert kept.is_file(), "make screenshots"
