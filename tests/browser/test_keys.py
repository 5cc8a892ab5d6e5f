"""Every action by keyboard, forms that speak while somebody types, and live parts that let the page stand still."""

from __future__ import annotations

import psycopg
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.support.rows import run
from tests.support.showcase import shop

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]


@pytest.fixture
def desk(page: Page, address: str, conn: psycopg.Connection) -> Page:
    """The overview of a shop with an incident."""
    shop(conn)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(address)
    return page


def heading(page: Page, text: str) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text(text)
    expect(page.locator("#open-keys")).to_be_visible()  # the script is there


def said(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text)
    expect(page.locator("#open-keys")).to_be_visible()


def test_pages_rows_and_actions_are_reached_by_keys(desk: Page, conn: psycopg.Connection) -> None:
    for key, title in (("e", "Errors"), ("q", "Queues"), ("n", "Nodes"), ("a", "Audit"), ("s", "Schedules")):
        desk.keyboard.press("g")
        desk.keyboard.press(key)
        heading(desk, title)
    desk.keyboard.press("/")
    desk.keyboard.type("stock")
    desk.keyboard.press("Enter")
    desk.wait_for_url("**q=stock**")
    expect(desk.locator("tbody tr")).to_have_count(4)  # of the same table, too
    for key in "jjkj":
        desk.keyboard.press(key)
    expect(desk.locator("tr.chosen")).to_contain_text("stocktaking")
    desk.reload()
    expect(desk.locator("tr.chosen")).to_contain_text("stocktaking")
    desk.keyboard.press("k")
    desk.keyboard.press("o")
    heading(desk, "stock")
    desk.keyboard.press("p")  # opens the question, and is in its field
    desk.keyboard.type("p is no key here")
    desk.keyboard.press("Enter")
    said(desk, "stock is paused")
    assert run(conn, "SELECT paused_reason FROM cluster.schedules WHERE name = 'stock'") == [("p is no key here",)]
    desk.keyboard.press("p")
    said(desk, "stock goes on")
    desk.keyboard.press("r")
    said(desk, "is new")
    desk.keyboard.press("x")
    expect(desk.get_by_role("button", name="Delete stock for ever")).to_be_focused()
    desk.keyboard.press("u")
    heading(desk, "Schedules")


def test_a_job_and_all_that_match_are_retried_by_keys(desk: Page, address: str, conn: psycopg.Connection) -> None:
    desk.goto(f"{address}email_customers_jobs/1000")
    desk.keyboard.press("r")
    said(desk, "Job 1000 begins again")
    desk.keyboard.press("m")
    expect(desk.get_by_label("Queue")).to_be_focused()
    desk.goto(f"{address}email_customers_jobs?status=failed")
    desk.keyboard.press("R")
    heading(desk, "Retry 286 jobs?")
    assert run(conn, "SELECT status::text FROM email_customers_jobs WHERE id = 1000") == [("not_started",)]


def test_the_keys_are_listed_with_those_of_the_page_and_can_be_switched_off(desk: Page, address: str) -> None:
    desk.goto(f"{address}schedules")
    desk.keyboard.press("?")
    keys = desk.get_by_role("dialog", name="Keys")
    expect(keys).to_contain_text("New schedule")
    desk.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    desk.keyboard.press("?")
    keys.get_by_label("Single keys are on").uncheck()
    desk.keyboard.press("Escape")
    desk.keyboard.press("n")
    desk.reload()
    desk.keyboard.press("n")
    heading(desk, "Schedules")
    desk.get_by_role("button", name="Keys").click()
    keys.get_by_label("Single keys are on").check()
    desk.keyboard.press("Escape")
    desk.keyboard.press("n")
    heading(desk, "New schedule")


def test_the_palette_leads_to_pages_job_types_schedules_and_what_can_be_done_here(desk: Page, address: str) -> None:
    def go(words: str) -> None:
        desk.keyboard.press("Control+k")
        desk.keyboard.type(words)
        expect(desk.get_by_role("option", selected=True)).to_contain_text(words)
        desk.keyboard.press("Enter")

    go("ResizeImage")
    heading(desk, "ResizeImageJob")
    desk.keyboard.press("g")
    desk.keyboard.press("o")
    heading(desk, "What is wrong now")
    go("thumbnails")
    heading(desk, "thumbnails")
    go("Activate")
    said(desk, "thumbnails is active.")
    desk.keyboard.press(":")
    desk.keyboard.type("no such thing")
    expect(desk.get_by_role("option")).to_have_text("Nothing of that name")
    desk.keyboard.press("Enter")
    heading(desk, "thumbnails")


def test_a_schedule_is_made_while_the_form_says_its_times_and_what_is_wrong(
    desk: Page, address: str, conn: psycopg.Connection
) -> None:
    desk.goto(f"{address}schedules/new?table=report_jobs")
    times = desk.get_by_role("complementary", name="Its times")
    desk.get_by_label("Name").fill("nightly")
    desk.get_by_label("Cron").fill("30 25 * * *")
    cron = desk.locator("[data-field=cron]")
    expect(cron).to_contain_text("hour '25'")
    expect(desk.get_by_label("Cron")).to_have_attribute("aria-invalid", "true")
    desk.get_by_label("Cron").fill("30 2 * * *")
    expect(times).to_contain_text("At 02:30 every day")
    expect(times.get_by_role("listitem")).to_have_count(5)
    expect(cron).not_to_contain_text("hour '25'")
    desk.get_by_label("Time zone").fill("berlin")
    expect(desk.locator("[data-field=time_zone]")).to_contain_text("did you mean 'Europe/Berlin'?")
    desk.get_by_label("Time zone").fill("Europe/Berlin")
    expect(times).to_contain_text("At 02:30 every day, Europe/Berlin")
    desk.get_by_label("options").fill("{")
    expect(desk.locator("[data-field='c.options']")).to_contain_text("not JSON")
    desk.get_by_label("options").fill("{}")
    desk.get_by_label("kind").select_option("weekly")
    desk.get_by_role("button", name="Create").click()
    heading(desk, "nightly")
    assert run(conn, "SELECT job_values, cron FROM cluster.schedules WHERE name = 'nightly'") == [
        ({"kind": "weekly", "options": {}}, "30 2 * * *")
    ]


def test_what_arrives_live_moves_neither_focus_nor_the_row_that_is_chosen(desk: Page, conn: psycopg.Connection) -> None:
    desk.keyboard.press("j")
    desk.keyboard.press("j")
    link = desk.locator("#live").get_by_role("link", name="EmailCustomersJob")
    expect(link).to_be_focused()
    link.evaluate("each => { each.mine = true }")
    run(conn, "SELECT cluster.create_job_table('a_jobs'); INSERT INTO a_jobs DEFAULT VALUES")  # a row above
    expect(desk.locator("table.types tbody tr")).to_have_count(5)
    expect(link).to_be_focused()
    assert link.evaluate("each => each.mine")
    expect(desk.locator("tr.chosen")).to_contain_text("EmailCustomersJob")


def test_a_tab_that_nobody_sees_asks_for_nothing(desk: Page) -> None:
    see = """is_hidden => {
        Object.defineProperty(document, "hidden", { value: is_hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with desk.expect_event("requestfailed", lambda request: request.url.endswith("/live")):  # it is broken off
        desk.evaluate(see, True)
    with desk.expect_request("**/live"):
        desk.evaluate(see, False)


def test_times_are_those_of_the_viewer_with_the_exact_one_on_hover(
    desk: Page, address: str, conn: psycopg.Connection
) -> None:
    run(conn, "UPDATE cluster.schedules SET starts_at = '2031-01-05 23:30Z' WHERE name = 'stocktaking'")
    desk.goto(f"{address}schedules/show?name=stocktaking")
    time = desk.locator("time", has_text="2031")
    expect(time).to_have_text("Mon, 06 Jan 2031, 00:30:00")
    expect(time).to_have_attribute("title", "Monday, 6 January 2031 at 00:30:00 CET (2031-01-05 23:30:00 UTC)")


def test_without_a_script_pages_are_read_and_single_actions_work(
    context: BrowserContext, address: str, conn: psycopg.Connection
) -> None:
    shop(conn)
    assert context.browser is not None
    plain = context.browser.new_context(java_script_enabled=False)
    page = plain.new_page()
    page.goto(f"{address}schedules/show?name=stock")
    page.get_by_text("Pause …").click()
    page.get_by_label("Why").fill("by hand")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("stock is paused")
    expect(page.get_by_role("button", name="Keys")).to_be_hidden()
    page.goto(f"{address}schedules/edit?name=stock")
    page.get_by_label("Or every").fill("3m")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("complementary", name="Its times")).to_contain_text("every 3 minutes")
    plain.close()


def test_no_page_weighs_more_than_100_kilobytes(desk: Page, address: str) -> None:
    weigh = "performance.getEntries().reduce((sum, each) => sum + (each.encodedBodySize || 0), 0)"
    for path in (
        "schedules",
        "schedules/new?table=report_jobs",
        "schedules/show?name=stock",
        "email_customers_jobs?size=50",
    ):
        desk.goto(address + path)  # nothing is cached
        assert 30_000 < desk.evaluate(weigh) < 100_000, path
