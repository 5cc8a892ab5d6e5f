"""What the dashboard's script adds to forms, in a real browser."""

from __future__ import annotations

import psycopg
import pytest
from playwright.sync_api import Browser, expect

from tests.support.rows import run

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium")]

TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY, name text);
INSERT INTO customers SELECT n, 'Customer ' || n FROM generate_series(1, 500) n;
SELECT cluster.create_job_table('mail_jobs');
ALTER TABLE mail_jobs ADD COLUMN customer_id integer REFERENCES customers, ADD COLUMN options jsonb;
"""


def test_a_referenced_row_is_found_by_its_name_json_is_checked_and_times_are_in_the_zone_at_hand(
    browser: Browser, address: str, conn: psycopg.Connection
) -> None:
    run(conn, TABLES)
    page = browser.new_page(timezone_id="Asia/Tokyo")
    page.goto(f"{address}mail_jobs/new")
    expect(page.get_by_label("Time zone of run_at")).to_have_value("Asia/Tokyo")
    customer = page.get_by_label("customer_id")
    customer.fill("Customer 432")
    page.locator('datalist option[value="432"]').wait_for(state="attached")
    customer.fill("432")
    page.get_by_label("options").fill('{"a": ')
    page.get_by_role("button", name="Insert").click()
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(0,)]
    page.get_by_label("options").fill('{"a": 1}')
    page.get_by_label("run_at", exact=False).first.fill("2030-01-01T12:00")
    page.get_by_role("button", name="Insert").click()
    expect(page.get_by_role("heading", name="Job 1")).to_be_visible()
    rows = run(conn, "SELECT customer_id, options, run_at AT TIME ZONE 'UTC' = '2030-01-01 03:00' FROM mail_jobs")
    assert rows == [(432, {"a": 1}, True)]
