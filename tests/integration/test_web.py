"""The dashboard's pages and actions, asked as a browser asks, on a real Postgres."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from cluster.dashboard import BasicAuthStatic, NoAuth, User, dashboard
from cluster.dashboard import auth as auth_module
from cluster.errors import SettingsError
from tests.support.nodes import PAUSE
from tests.support.postgres import RunServer
from tests.support.rows import run

TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY);
INSERT INTO customers VALUES (1), (2);
SELECT cluster.create_job_table('mail_jobs');
CREATE TYPE level AS ENUM ('low', 'high');
ALTER TABLE mail_jobs ADD COLUMN label text, ADD COLUMN customer_id integer REFERENCES customers,
    ADD COLUMN count integer NOT NULL DEFAULT 1 CHECK (count < 100), ADD COLUMN options jsonb, ADD COLUMN level level;
"""
FAIL = "UPDATE mail_jobs SET status = 'failed', finished_at = now(), last_error = {} WHERE id {}"
BASE = "http://127.0.0.1"
Browse = Callable[..., Any]


@asynccontextmanager
async def browsing(
    url: str, auth: Any = None, mount: str = "/jobs", jobs: Any = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the dashboard, mounted in an application."""
    inner = dashboard(auth or NoAuth(), jobs=jobs, database_url=url)
    app = Starlette(routes=[Mount(mount, inner)])
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with (
        inner.router.lifespan_context(inner),
        httpx.AsyncClient(transport=transport, base_url=f"{BASE}{mount}", timeout=20) as client,
    ):
        yield client


@pytest.fixture
async def web(database_url: str, conn: psycopg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    run(conn, TABLES)
    async with browsing(database_url) as client:
        yield client


def token(response: httpx.Response) -> str:
    found = re.search(r'name="token" value="([^"]+)"', response.text)
    assert found, response.text
    return found[1]


async def send(web: httpx.AsyncClient, page: str, to: str, **values: object) -> httpx.Response:
    """A form of one page, sent; the page that it leads to."""
    data = {"token": token(await web.get(page))} | {name.replace("__", "."): value for name, value in values.items()}
    response = await web.post(to, data=data, headers={"sec-fetch-site": "same-origin"})
    return await web.get(BASE + response.headers["location"]) if response.status_code == 303 else response


# --- who gets in ---


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


async def test_nobody_sees_anything_without_the_password_not_even_a_style_sheet(database_url: str) -> None:
    async with browsing(database_url, BasicAuthStatic("ann", "s3cret")) as web:
        for path in ("/", "/live", "/static/style.css", "/mail_jobs", "/nonsense"):
            assert (await web.get(path)).status_code == 401, path
        assert (await web.get("/", headers=basic("ann", "wrong"))).status_code == 401
        assert (await web.get("/", headers={"authorization": "Basic %%%"})).status_code == 401
        assert (await web.get("/", headers=basic("ann", "s3cret"))).status_code == 200


async def test_passwords_can_not_be_tried_for_long(database_url: str) -> None:
    async with browsing(database_url, BasicAuthStatic("ann", "s3cret")) as web:
        for _ in range(auth_module.FAILURES):
            assert (await web.get("/", headers=basic("ann", "wrong"))).status_code == 401
        refused = await web.get("/", headers=basic("ann", "s3cret"))
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= auth_module.WINDOW


def test_a_dashboard_without_user_or_password_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLUSTER_DASHBOARD_PASSWORD", raising=False)
    with pytest.raises(SettingsError, match="CLUSTER_DASHBOARD_PASSWORD"):
        dashboard(database_url="postgresql://nowhere")


async def test_without_a_password_only_this_machine_by_its_own_name_gets_in(database_url: str) -> None:
    async with browsing(database_url) as web:
        assert (await web.get("/")).status_code == 200
        assert (await web.get("/", headers={"host": "attacker.example"})).status_code == 401


async def test_a_form_of_another_site_or_without_our_token_does_nothing(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    right = token(await web.get("/mail_jobs"))
    cases = [("cross-site", right), ("same-site", right), ("same-origin", ""), ("same-origin", right[:-1] + "x")]
    for site, value in cases:
        response = await web.post("/mail_jobs/1/cancel", data={"token": value}, headers={"sec-fetch-site": site})
        assert response.status_code == 403, (site, value)
    assert run(conn, "SELECT status FROM mail_jobs") == [("not_started",)]


async def test_the_token_of_one_user_is_worth_nothing_to_another(database_url: str, conn: psycopg.Connection) -> None:
    run(conn, TABLES)

    def who(request: Any) -> User:
        return User(request.headers.get("x-name", "ann"), "admin")

    async with browsing(database_url, who) as web:
        data = {"token": token(await web.get("/mail_jobs")), "do": "pause"}
        assert (await web.post("/mail_jobs/type", data=data, headers={"x-name": "bob"})).status_code == 403
        assert (await web.post("/mail_jobs/type", data=data)).status_code == 303


async def test_a_viewer_is_offered_nothing_and_may_do_nothing(database_url: str, conn: psycopg.Connection) -> None:
    run(conn, TABLES)
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    role = "admin"
    async with browsing(database_url, lambda _: User("eve", role)) as web:  # type: ignore[arg-type]
        stolen = token(await web.get("/mail_jobs"))
        role = "viewer"
        page = (await web.get("/mail_jobs/1")).text
        assert 'method="post"' not in page
        assert (await web.post("/mail_jobs/1/cancel", data={"token": stolen})).status_code == 403
        role = "operator"
        assert (await web.post("/mail_jobs/1/delete", data={"token": stolen})).status_code == 403
    assert run(conn, "SELECT status FROM mail_jobs") == [("not_started",)]


async def test_every_answer_forbids_scripts_of_others_frames_and_caches(web: httpx.AsyncClient) -> None:
    for path in ("/", "/mail_jobs", "/nothing", "/static/script.js"):
        headers = (await web.get(path)).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
        assert "no-store" in headers["cache-control"]


async def test_no_page_asks_another_host_or_has_anything_inline(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    for path in ("/", "/mail_jobs", "/mail_jobs/1", "/mail_jobs/new", "/errors", "/queues", "/nodes", "/audit"):
        text = (await web.get(path)).text
        assert not re.search(r'(src|href|action)="(?!/jobs/)(?!#)', text), path
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", text), path
        assert len(text) < 100_000


# --- what is shown ---


async def test_the_overview_counts_what_waits_runs_and_fails(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO mail_jobs (run_at) SELECT now() + (n - 3) * interval '1 hour' FROM generate_series(1, 5) n")
    run(conn, "UPDATE cluster.job_types SET max_concurrency_override = 7")
    shown = (await web.get("/", headers={"accept": "application/json"})).json()
    (summary,) = shown["situation"]["types"]
    assert summary["jobs"] == {"not_started": 3, "scheduled": 2}
    assert summary["table"]["limit"] == 7
    assert 7100 < summary["oldest"] < 7300
    page = (await web.get("/")).text
    assert "No node is running, and 3 jobs wait" in page


async def test_the_overview_says_what_fails_and_leads_to_exactly_those(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs (label) SELECT n FROM generate_series(1, 20) n")
    run(conn, FAIL.format("'ValueError: no customer ' || id", "<= 10"))
    run(conn, FAIL.format("'OSError: disk'", "= 11"))
    run(conn, "UPDATE mail_jobs SET status = 'succeeded', finished_at = now() WHERE id > 11")
    found = (await web.get("/", headers={"accept": "application/json"})).json()["findings"]
    (failing,) = [each for each in found if "fail" in each["text"]]
    assert "55 % of its newest jobs fail (11 of 20)" in failing["text"]
    page = await web.get("/mail_jobs?status=failed")
    groups = re.findall(r'<li><span class="number">(\d+) %</span>.*?<a href="([^"]+)">([^<]+)<', page.text, re.DOTALL)
    assert [(share, text) for share, _, text in groups] == [
        ("91", "ValueError: no customer …"), ("9", "OSError: disk"),
    ]  # fmt: skip
    those = await web.get(BASE + groups[0][1].replace("&amp;", "&"))
    assert those.text.count('class="status failed"') == 10 + 1  # the filter's own is one


async def test_a_list_is_read_in_pages_without_gaps_while_jobs_come(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs (label) SELECT n FROM generate_series(1, 60) n")
    seen: list[int] = []
    path: str | None = "/mail_jobs"
    while path:
        page = (await web.get(path, headers={"accept": "application/json"})).json()["page"]
        seen += [job["id"] for job in page["jobs"]]
        run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
        path = f"/mail_jobs?before={page['next_before']}" if page["next_before"] else None
    assert seen == list(range(60, 0, -1))


async def test_a_few_that_run_are_found_among_any_number_of_newer_ones(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.dashboard.lists.SPAN", 10)
    run(conn, "INSERT INTO mail_jobs (queue) SELECT 'q' || n % 2 FROM generate_series(1, 50) n")
    run(conn, "UPDATE mail_jobs SET status = 'running', locked_at = now() WHERE id = 3")
    found = (await web.get("/mail_jobs?status=running", headers={"accept": "application/json"})).json()
    assert [job["id"] for job in found["page"]["jobs"]] == [3]


async def test_a_filter_that_no_index_serves_looks_at_a_bounded_part_and_says_so(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.dashboard.lists.SPAN", 10)
    run(conn, "INSERT INTO mail_jobs (label) SELECT n FROM generate_series(1, 35) n")
    run(conn, FAIL.format("'boom'", "= 12"))
    page = await web.get("/mail_jobs?status=failed")
    assert "10 jobs were looked at, down to id 25" in page.text
    found: list[int] = []
    path = "/mail_jobs?status=failed"
    while path:
        shown = (await web.get(path, headers={"accept": "application/json"})).json()["page"]
        found += [job["id"] for job in shown["jobs"]]
        path = f"/mail_jobs?status=failed&before={shown['read_to']}" if shown["read_to"] else ""
    assert found == [12]


async def test_a_job_is_shown_with_all_its_columns(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO mail_jobs (label, customer_id, options, level) VALUES ('hello', 2, '{\"a\": 1}', 'high')")
    page = (await web.get("/mail_jobs/1")).text
    for text in ("hello", "{&#34;a&#34;: 1}", "high", "→ customers", "crashes_count"):
        assert text in page
    assert (await web.get("/mail_jobs?id=1")).text.count("hello")


HOSTILE = "<script>alert(1)</script>\"'&{{ 7777 * 77777 }}"


FAILURE = "INSERT INTO cluster.failures SELECT 'mail_jobs', 1, 1, now(), NULL, 'retry', %s, %s"


async def test_hostile_values_are_text_wherever_they_are_shown(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    name = 'we"ird <b>%s table'
    conn.execute("SELECT cluster.create_job_table(quote_ident(%s))", [name])
    conn.execute("INSERT INTO mail_jobs (label, queue) VALUES (%s, %s)", [HOSTILE, HOSTILE])
    conn.execute("UPDATE mail_jobs SET status = 'failed', last_error = %s", [HOSTILE])
    conn.execute("SELECT cluster.pause(%s::text, %s)", [HOSTILE, HOSTILE])
    strange = re.findall(r'href="/jobs/(oid-\d+)"', (await web.get("/")).text)[0]
    conn.execute(FAILURE, [HOSTILE.replace("/", ""), HOSTILE])
    paths = ["/", "/mail_jobs", "/mail_jobs?status=failed", "/mail_jobs/1", "/queues", "/mail_jobs/new?from=1"]
    hostile = quote(HOSTILE.replace("/", ""), safe="")
    paths += ["/errors", f"/errors/{hostile}", f"/mail_jobs?group={hostile}", f"/mail_jobs/bulk/retry?group={hostile}"]
    paths += [f"/{strange}", f"/{strange}/new"]
    paths += [
        str(httpx.URL("/mail_jobs", params={"queue": HOSTILE, "error": HOSTILE, "before": HOSTILE, "size": HOSTILE}))
    ]
    for path in paths:
        response = await web.get(path)
        assert response.status_code == 200, path
        assert "<script>alert" not in response.text, path
        assert "<b>%s" not in response.text, path
        assert str(7777 * 77777) not in response.text, path


async def test_nonsense_in_an_address_is_answered_calmly(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    for path in (
        "/mail_jobs/99999999999999999999", "/mail_jobs/9223372036854775807", "/mail_jobs/x", "/mail_jobs/-1", "/mail_jobs/1%00",
        "/pg_class", "/mail_jobs%3B%20DROP", "/cluster.nodes", "/mail_jobs/bulk/drop", "/bulk/x", "/mail_jobs/bulk/retry",
    ):  # fmt: skip
        response = await web.get(path)
        assert response.status_code in (404, 409), (path, response.status_code)
        assert "<h1>" in response.text
    for query in (
        "queue=%00",
        "error=%ff%fe",
        "status=nonsense",
        "before=9e9",
        "since=forever",
        "error=%25s",
        "id=' OR 1=1",
    ):
        response = await web.get(f"/mail_jobs?{query}")
        assert response.status_code in (200, 404), query


async def test_large_and_strange_values_are_shown_cut(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "ALTER TABLE mail_jobs ADD COLUMN at timestamptz, ADD COLUMN raw bytea")
    run(conn, "INSERT INTO mail_jobs (label, at, raw) VALUES (repeat('x', 10000000), 'infinity', '\\x00ff')")
    run(
        conn,
        "INSERT INTO mail_jobs (created_at, updated_at, run_at) VALUES ('infinity', '0300-01-01 BC', '9999-12-30')",
    )
    assert (await web.get("/mail_jobs/2")).status_code == 200
    for path in ("/mail_jobs", "/mail_jobs/1"):
        page = await web.get(path)
        assert page.status_code == 200
        assert len(page.text) < 60_000
    assert "infinity" in page.text


async def test_a_table_that_is_dropped_or_locked_spoils_only_its_own_row(
    web: httpx.AsyncClient, conn: psycopg.Connection, database_url: str
) -> None:
    run(conn, "SELECT cluster.create_job_table('other_jobs')")
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE other_jobs")
        page = (await web.get("/")).text
        assert "other_jobs can&#39;t be shown: the table is locked" in page
    run(conn, "DROP TABLE other_jobs")
    assert "other_jobs" not in (await web.get("/")).text
    assert (await web.get("/other_jobs")).status_code == 404


async def test_a_table_named_like_a_page_goes_by_its_full_name(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "SELECT cluster.create_job_table('nodes')")
    assert 'href="/jobs/public.nodes"' in (await web.get("/")).text
    assert "No jobs yet" in (await web.get("/public.nodes")).text


async def test_while_postgres_is_away_a_page_says_so_and_comes_back_by_itself(run_server: RunServer) -> None:
    async with browsing("postgresql://127.0.0.1:1/nowhere") as web:
        away = await web.get("/")
    assert away.status_code == 503
    assert "Postgres can&#39;t be reached" in away.text
    assert away.headers["refresh"] == "5"


async def test_a_database_without_schema_cluster_says_what_to_run(empty_database_url: str) -> None:
    async with browsing(empty_database_url) as web:
        page = await web.get("/")
    assert page.status_code in (404, 503)
    assert "cluster migrate" in page.text


async def test_what_takes_too_long_is_stopped_and_explained(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.dashboard.database._READ", "BEGIN READ ONLY; SET LOCAL statement_timeout = '200ms'")
    run(conn, "CREATE FUNCTION slow(text) RETURNS text LANGUAGE sql AS 'SELECT pg_sleep(5)::text'")
    run(conn, "ALTER TABLE mail_jobs DROP COLUMN label; CREATE DOMAIN slow_text AS text")
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    monkeypatch.setattr("cluster.dashboard.lists._END", "")
    monkeypatch.setattr(
        "cluster.dashboard.lists._SPAN", "SELECT {fields}, slow('') FROM {table} {conditions} -- {span}"
    )
    slow = await web.get("/mail_jobs")
    assert slow.status_code == 504
    assert "Narrow it down" in slow.text


async def test_a_role_that_may_only_read_is_offered_no_actions(database_url: str, conn: psycopg.Connection) -> None:
    run(conn, TABLES)
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES; DROP ROLE IF EXISTS web_reader")
    run(conn, "CREATE ROLE web_reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA cluster, public TO web_reader")
    try:
        async with browsing(database_url.replace("//postgres@", "//web_reader@")) as web:
            assert (await web.get("/")).status_code == 200
            page = (await web.get("/mail_jobs/1")).text
            assert "/cancel" not in page
            refused = await send(web, "/queues", "/queues", queue="mail", do="pause")
            assert refused.status_code == 403
            assert "lacks a privilege" in refused.text
    finally:
        run(conn, "DROP OWNED BY web_reader; DROP ROLE web_reader")


# --- what is done ---


async def test_a_job_is_retried_cancelled_run_now_run_again_and_deleted(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs (label, run_at) SELECT 'a', now() + interval '1 day' FROM generate_series(1, 2)")
    run(conn, "INSERT INTO mail_jobs (label, queue) VALUES ('b', 'mail')")
    run(conn, FAIL.format("'boom'", "= 3"))
    assert "is due now" in (await send(web, "/mail_jobs/1", "/mail_jobs/1/now")).text
    assert "is cancelled" in (await send(web, "/mail_jobs/2", "/mail_jobs/2/cancel")).text
    assert "is a new one" in (await send(web, "/mail_jobs/3", "/mail_jobs/3/again")).text
    assert "begins again" in (await send(web, "/mail_jobs/3", "/mail_jobs/3/retry")).text
    assert "is deleted" in (await send(web, "/mail_jobs/2", "/mail_jobs/2/delete")).text
    rows = run(conn, "SELECT id, status::text, label, queue FROM mail_jobs ORDER BY id")
    assert rows == [
        (1, "not_started", "a", "default"), (3, "not_started", "b", "mail"), (4, "not_started", "b", "mail"),
    ]  # fmt: skip
    audit = run(conn, "SELECT who, via, action, target, count FROM cluster.audit ORDER BY id")
    assert audit[0] == ("anybody", "dashboard", "now", "mail_jobs 1", 1)
    assert [action for _, _, action, _, _ in audit] == ["now", "cancel", "again", "retry", "delete"]
    assert "mail_jobs 3" in (await web.get("/audit")).text


async def test_a_job_that_waits_is_moved_to_another_queue_and_priority(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs (label) VALUES ('a'), ('b')")
    run(conn, FAIL.format("'boom'", "= 2"))
    moved = await send(web, "/mail_jobs/1", "/mail_jobs/1/move", queue="mail", priority="7")
    assert "is in queue mail with priority 7" in moved.text
    for priority in ("0", "x", "9999999"):
        refused = await send(web, "/mail_jobs/1", "/mail_jobs/1/move", queue="", priority=priority)
        assert (refused.status_code, "1 to 100" in refused.text) == (409, True)
    assert (await send(web, "/mail_jobs", "/mail_jobs/2/move", queue="mail", priority="")).status_code == 409
    rows = run(conn, "SELECT queue, priority FROM mail_jobs ORDER BY id")
    assert rows == [("mail", 7), ("default", 50)]


async def test_what_can_not_be_done_any_more_says_so_and_leaves_no_trace(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    right = token(await web.get("/mail_jobs/1"))
    for path in (
        "/mail_jobs/1/retry",
        "/mail_jobs/1/now",
        "/mail_jobs/7/cancel",
        "/mail_jobs/7/delete",
        "/mail_jobs/7/again",
    ):
        response = await web.post(path, data={"token": right})
        assert response.status_code == 409, path
    assert run(conn, "SELECT count(*) FROM cluster.audit") == [(0,)]


async def test_what_an_index_of_the_users_refuses_is_said(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "CREATE UNIQUE INDEX one_waits ON mail_jobs (label) WHERE status = 'not_started'")
    run(conn, "INSERT INTO mail_jobs (label) VALUES ('a')")
    run(conn, FAIL.format("'boom'", "= 1"))
    run(conn, "INSERT INTO mail_jobs (label) VALUES ('a')")
    refused = await send(web, "/mail_jobs/1", "/mail_jobs/1/retry")
    assert refused.status_code == 409
    assert "one_waits" in refused.text


async def test_types_and_queues_are_paused_and_resumed_and_a_limit_changed(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    await send(web, "/mail_jobs", "/mail_jobs/type", do="pause", reason="the mail server moves")
    assert "the mail server moves" in (await web.get("/")).text
    await send(web, "/mail_jobs", "/mail_jobs/type", do="resume")
    await send(web, "/mail_jobs", "/mail_jobs/type", do="limit", limit="3")
    await send(web, "/queues", "/queues", do="pause", queue="mail", reason="")
    assert run(conn, "SELECT paused_at, max_concurrency_override FROM cluster.job_types") == [(None, 3)]
    assert run(conn, "SELECT name FROM cluster.queues WHERE paused_at IS NOT NULL") == [("mail",)]
    assert (await send(web, "/mail_jobs", "/mail_jobs/type", do="limit", limit="-1")).status_code == 409
    await send(web, "/queues", "/queues", do="pause", queue="*", reason="all of it")
    assert run(conn, "SELECT paused_reason FROM cluster.job_types") == [("all of it",)]
    assert "Everything goes on" in (await send(web, "/queues", "/queues", do="resume", queue="*")).text
    assert run(conn, "SELECT paused_at FROM cluster.job_types") == [(None,)]
    await send(web, "/mail_jobs", "/mail_jobs/type", do="limit", limit="")
    assert run(conn, "SELECT max_concurrency_override FROM cluster.job_types") == [(None,)]


async def until_over(web: httpx.AsyncClient, page: httpx.Response) -> httpx.Response:
    path = page.url
    while "refresh" in page.headers:
        await asyncio.sleep(PAUSE)
        page = await web.get(path)
    return page


async def test_all_that_match_are_retried_after_their_number_was_shown(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.selection.BATCH", 10)
    run(conn, "INSERT INTO mail_jobs (label) SELECT n FROM generate_series(1, 100) n")
    run(conn, FAIL.format("'ValueError: no customer ' || id", "<= 91"))
    run(conn, FAIL.format("'OSError: disk'", "> 91"))
    asked = await web.get("/mail_jobs/bulk/retry?status=failed&error=no+customer")
    assert "Retry 91 jobs?" in asked.text
    form = {"token": token(asked), "status": "failed", "error": "no customer", "total": "91"}
    begun = await web.post("/mail_jobs/bulk/retry", data=form)
    page = await until_over(web, await web.get(BASE + begun.headers["location"]))
    assert "Retry: done" in page.text
    assert "91 not started" in page.text
    assert run(conn, "SELECT count(*) FROM mail_jobs WHERE status = 'failed'") == [(9,)]
    (audit,) = run(conn, "SELECT action, target, filter, count FROM cluster.audit")
    assert audit == ("retry all", "mail_jobs", {"status": ["failed"], "error": "no customer"}, 91)


async def test_nothing_is_done_to_all_jobs_without_a_filter(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO mail_jobs DEFAULT VALUES")
    right = token(await web.get("/mail_jobs"))
    assert (await web.post("/mail_jobs/bulk/delete", data={"token": right})).status_code == 409
    assert (await web.post("/mail_jobs/bulk/delete", data={"token": right, "status": "nonsense"})).status_code == 409
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(1,)]


async def test_a_new_job_comes_from_the_form(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    values = {
        "c__label": "from the form",
        "c__customer_id": "2",
        "c__options": '{"a": 1}',
        "c__level": "high",
        "c__queue": "mail",
    }
    made = await send(web, "/mail_jobs/new", "/mail_jobs/new", **values)
    assert "Job 1 is new" in made.text
    rows = run(conn, "SELECT label, customer_id, count, options, level::text, queue, status::text FROM mail_jobs")
    assert rows == [("from the form", 2, 1, {"a": 1}, "high", "mail", "not_started")]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("customer_id", "77", "violates foreign key"),
        ("count", "100", "violates check"),
        ("count", "many", "invalid input syntax"),
        ("options", "{", "invalid input syntax"),
        ("level", "middle", "invalid input value"),
        ("run_at", "yesteryear", "invalid input syntax"),
        ("priority", "0", "violates check"),
        ("label", "a\x00b", "NUL"),
    ],
)
async def test_what_postgres_refuses_is_said_at_the_field(
    web: httpx.AsyncClient, conn: psycopg.Connection, column: str, value: str, said: str
) -> None:
    refused = await send(web, "/mail_jobs/new", "/mail_jobs/new", **{f"c__{column}": value})
    assert refused.status_code == 422
    (field,) = re.findall(r'<div class="field refused"[^>]*>(.*?)</div>', refused.text, re.DOTALL)
    assert f'name="c.{column}"' in field
    assert said in field
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(0,)]


async def test_a_program_reads_and_acts_in_json(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    web.headers["accept"] = "application/json"
    run(conn, "INSERT INTO mail_jobs (label) VALUES ('a')")
    job = (await web.get("/mail_jobs/1")).json()
    assert (job["job"]["label"], job["job"]["status"]) == ("a", "not_started")
    done = await web.post("/mail_jobs/1/cancel", data={"token": job["token"]})
    assert done.json() == {"said": "Job 1 is cancelled."}
    again = await web.post("/mail_jobs/1/now", data={"token": job["token"]})
    assert again.status_code == 409
    assert "finished by now" in again.json()["detail"]
    assert (await web.get("/nothing")).json()["error"] == "Not here"
    chosen = {"status": "cancelled", "token": job["token"]}
    assert (await web.post("/mail_jobs/bulk/delete", data=chosen)).json()["run"]["action"] == "delete"


async def test_a_forged_field_of_the_form_sets_nothing(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    await send(web, "/mail_jobs/new", "/mail_jobs/new", c__status="succeeded", c__id="99", c__attempts_count="5")
    assert run(conn, "SELECT id, status::text, attempts_count FROM mail_jobs") == [(1, "not_started", 0)]


# --- charts ---

MINUTES = """
INSERT INTO cluster.minutes
SELECT date_trunc('minute', now()) - n * interval '1 minute', 'mail_jobs', gen_random_uuid(), 100, n % 2, 5, '{0,0,0,90,10}'
FROM generate_series(3, 30) AS n, generate_series(1, 2);
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, code, started_at)
SELECT gen_random_uuid(), 'host', n, '1', '{*}', '{}', now(), 1, 'code' || n / 3, now() - (20 - n) * interval '1 minute'
FROM generate_series(0, 5) AS n;
"""


async def test_the_overview_draws_the_last_hour_with_its_deploy_and_says_it_in_words(
    web: httpx.AsyncClient, conn: psycopg.Connection, database_url: str
) -> None:
    assert "Nothing was performed in the last hour" in (await web.get("/charts")).text
    run(conn, MINUTES)
    async with browsing(database_url) as fresh:  # what was read is kept for some seconds
        page = (await fresh.get("/")).text
        drawn = re.findall(r'<svg class="chart (\w+)"[^>]*aria-label="([^"]+)"', page)
        assert [kind for kind, _ in drawn] == ["throughput", "latency"]
        assert drawn[0][1].startswith("5,600 attempts succeeded and 28 failed in the last hour, 202 a minute at most")
        assert "95 % began within 18 ms" in drawn[1][1]
        assert page.count("Deploy, the lines in the charts") == 1
        assert "code code1" in page
        assert len(re.findall(r"M[\d.]+ 0V44", page)) == 2, "one line in each of two charts"
        assert not re.search(r"<style|\sstyle=", page)
        shown = (await fresh.get("/charts", headers={"accept": "application/json"})).json()
        assert sum(shown["charts"][0]["succeeded"]) == 5600


async def test_a_role_that_may_not_read_the_minutes_sees_the_rest(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "ALTER TABLE cluster.minutes RENAME TO hidden")
    page = await web.get("/")
    assert page.status_code == 200
    assert "There are no charts" in page.text
