"""The dashboard's form for new jobs, saved views, secrets, and bulk moves."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

import httpx
import psycopg
import pydantic
import pytest

from cluster import Job, Secret
from cluster.dashboard import User
from cluster.migration import migrate_jobs
from tests.integration.test_web import BASE, browsing, send, token, until_over
from tests.support.rows import run

TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY, name text);
INSERT INTO customers SELECT n, 'Customer ' || n FROM generate_series(1, 100) n;
SELECT cluster.create_job_table('mail_jobs');
ALTER TABLE mail_jobs ADD COLUMN label text NOT NULL CHECK (label <> 'nobody'), ADD COLUMN customer_id integer REFERENCES customers,
    ADD COLUMN is_big boolean NOT NULL DEFAULT false, ADD COLUMN at timestamptz, ADD COLUMN day date, ADD COLUMN wall timestamp,
    ADD COLUMN options jsonb, ADD COLUMN tags text[], ADD COLUMN numbers integer[], ADD COLUMN password text;
COMMENT ON COLUMN mail_jobs.password IS 'of the mail server. cluster:secret';
"""
WORD = "hunter2-is-secret"


@pytest.fixture
async def web(database_url: str, conn: psycopg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    run(conn, TABLES)
    async with browsing(database_url) as client:
        yield client


# --- the form ---


async def test_each_type_has_its_input_and_what_is_sent_is_what_is_meant(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    page = html.unescape((await web.get("/mail_jobs/new")).text)
    for part in (
        'name="c.label" aria-describedby="field-1-hint" required', "label <> 'nobody'", "default false", "<option>true</option>",
        "default default", 'type="datetime-local"', 'name="z.at"', 'type="date"', "data-json", "one element a line",
        'type="password"', '<option value="1">Customer 1</option>',
    ):  # fmt: skip
        assert part in page, part
    sent = {
        "c__label": "a", "c__customer_id": "7", "c__is_big": "true", "c__at": "2026-05-01T18:00", "z__at": "Europe/Berlin",
        "c__day": "2026-05-02", "c__wall": "2026-05-03T04:05:06.5", "c__options": '{"a": [1]}', "c__tags": "one,\r\n{two}",
        "c__numbers": "{1,NULL}", "c__run_at": "2026-01-01T00:00", "z__run_at": "-02:00", "c__priority": "7", "c__password": WORD,
    }  # fmt: skip
    made = await send(web, "/mail_jobs/new", "/mail_jobs/new", **sent)
    assert "Job 1 is new" in made.text
    row = run(
        conn,
        "SELECT customer_id, is_big, at, day::text, wall::text, options, tags, numbers, run_at, priority FROM mail_jobs",
    )
    assert row == [
        (7, True, datetime(2026, 5, 1, 16, tzinfo=UTC), "2026-05-02", "2026-05-03 04:05:06.5", {"a": [1]}, ["one,", "{two}"],
         [1, None], datetime(2026, 1, 1, 2, tzinfo=UTC), 7),
    ]  # fmt: skip
    again = (await web.get("/mail_jobs/new?from=1")).text
    for part in (
        'value="2026-05-01T16:00:00"',
        'value="2026-05-03T04:05:06.5"',
        'value="2026-05-02"',
        "Customer 7</span>",
    ):
        assert part in again, part
    assert WORD not in again


async def test_what_an_input_can_not_hold_is_shown_as_text(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    values = "'a', '0300-01-01 BC', 'infinity', '2026-01-01 00:00:00.123456'"
    run(conn, f"INSERT INTO mail_jobs (label, at, day, wall) VALUES ({values})")
    page = (await web.get("/mail_jobs/new?from=1")).text
    for value in ("0300-01-01 00:00:00+00 BC", "infinity", "2026-01-01 00:00:00.123456"):
        assert f'value="{value}"' in page, value
    assert "is new" in (await send(web, "/mail_jobs/new", "/mail_jobs/new", c__label="b", c__at="0300-01-01 BC")).text


async def test_what_is_refused_is_said_at_the_field_and_the_rest_is_kept(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    cases = [
        ("c__at", {"c__at": "2026-05-01T18:00", "z__at": "Nowhere/Land"}, "not recognized"),
        ("c__options", {"c__options": '{"a": }'}, "type json: "),
        ("c__numbers", {"c__numbers": "1\ntwo"}, "invalid input syntax"),
        ("c__customer_id", {"c__customer_id": "777"}, "is not present"),
        ("c__label", {"c__label": "nobody"}, "violates check"),
        ("c__label", {"c__label": ""}, "null value"),
    ]
    for name, sent, said in cases:
        values = {"c__label": "kept", "c__day": "2026-05-02", "c__password": WORD} | sent
        refused = await send(web, "/mail_jobs/new", "/mail_jobs/new", **values)
        assert refused.status_code == 422, name
        (field,) = re.findall(r'<div class="field refused"[^>]*>(.*?)</div>', refused.text, re.DOTALL)
        assert f'name="{name.replace("__", ".")}"' in field, name
        assert said in field, name
        assert 'value="2026-05-02"' in refused.text
        assert WORD not in refused.text
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(0,)]


async def test_a_value_that_is_too_long_to_be_edited_is_kept_whole(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs (label, tags) VALUES (repeat('x', 100000), '{a}')")
    page = await web.get("/mail_jobs/new?from=1")
    assert "empty: that of job 1" in page.text
    sent = {"from": "1", "keep": "label", "c__label": "", "c__tags": "b"}
    assert "is new" in (await send(web, "/mail_jobs/new?from=1", "/mail_jobs/new", **sent)).text
    assert run(conn, "SELECT length(label), tags FROM mail_jobs WHERE id = 2") == [(100000, ["b"])]
    run(conn, "DELETE FROM mail_jobs WHERE id = 1")
    gone = await send(web, "/mail_jobs/new", "/mail_jobs/new", **sent)
    assert (gone.status_code, "is gone" in gone.text) == (409, True)


class GreetJob(Job):
    to: Annotated[str, pydantic.Field(description="Whom to greet")]
    token: UUID = pydantic.Field(default_factory=uuid4)
    words: list[str] = []  # noqa: RUF012 - a job class copies it
    password: Annotated[str | None, Secret()] = None

    @pydantic.field_validator("to")
    @classmethod
    def _is_polite(cls, value: str) -> str:
        if value.islower():
            raise ValueError("names begin with a capital")
        return value

    async def perform(self) -> None: ...


async def test_a_class_checks_and_explains_its_form(database_url: str, conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [GreetJob])
    async with browsing(database_url, jobs=[GreetJob]) as web:
        page = (await web.get("/greet_jobs/new")).text
        assert "Whom to greet" in page
        assert "the class makes one" in page
        refused = await send(web, "/greet_jobs/new", "/greet_jobs/new", c__to="ann")
        assert (refused.status_code, "names begin with a capital" in refused.text) == (422, True)
        assert run(conn, "SELECT count(*) FROM greet_jobs") == [(0,)]
        assert "is new" in (await send(web, "/greet_jobs/new", "/greet_jobs/new", c__to="Ann", c__words='["a"]')).text
    ((to, made, words),) = run(conn, 'SELECT "to", token, words FROM greet_jobs')
    assert (to, words, type(made)) == ("Ann", ["a"], UUID)


# --- secrets ---


async def test_a_secret_is_shown_nowhere(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO mail_jobs (label, password) VALUES ('a', %s)", [WORD])
    for path in ("/mail_jobs", "/mail_jobs/1", "/mail_jobs/new?from=1", "/mail_jobs?add=password", "/"):
        for accept in ("text/html", "application/json"):
            page = await web.get(path, headers={"accept": accept})
            assert (page.status_code, WORD in page.text) == (200, False), path
    assert "••••••" in (await web.get("/mail_jobs/1")).text
    assert (await web.get("/mail_jobs/1/value?column=password")).status_code == 403
    assert (await web.get("/mail_jobs/options?column=password")).json() == []
    for operator in ("eq", "starts", "null"):
        refused = await web.get(f"/mail_jobs?password.{operator}={WORD}")
        assert (refused.status_code, "values are secret" in refused.text) == (422, True)
        assert (await web.get(f"/mail_jobs/bulk/cancel?password.{operator}=h")).status_code == 409
    made = await send(web, "/mail_jobs/new?from=1", "/mail_jobs/new", c__label="b", **{"from": "1"})
    assert "is new" in made.text
    await send(web, "/mail_jobs/1", "/mail_jobs/1/cancel")
    await send(web, "/mail_jobs/1", "/mail_jobs/1/again")
    assert run(conn, "SELECT DISTINCT password FROM mail_jobs") == [(WORD,)]
    assert WORD not in str(run(conn, "SELECT a::text FROM cluster.audit AS a"))


async def test_an_admin_sees_a_secret_and_the_audit_has_that(database_url: str, conn: psycopg.Connection) -> None:
    run(conn, TABLES)
    conn.execute("INSERT INTO mail_jobs (label, password) VALUES ('a', %s), ('b', NULL)", [WORD])
    role = "admin"
    async with browsing(database_url, lambda _: User("eve", role)) as web:  # type: ignore[arg-type]
        assert ">Show</button>" in (await web.get("/mail_jobs/1")).text
        shown = await send(web, "/mail_jobs/1", "/mail_jobs/1/secret", column="password")
        assert (shown.status_code, WORD in shown.text, shown.headers["cache-control"]) == (200, True, "no-store")
        audit = [("eve", "show", "mail_jobs 1", {"column": "password"})]
        assert run(conn, "SELECT who, action, target, filter FROM cluster.audit") == audit
        right = token(await web.get("/mail_jobs/1"))
        for path, column, status in (
            ("1", "label", 404),
            ("1", "nothing", 404),
            ("2", "password", 409),
            ("x", "password", 404),
        ):
            sent = await web.post(f"/mail_jobs/{path}/secret", data={"token": right, "column": column})
            assert sent.status_code == status, (path, column)
        assert (await web.post("/mail_jobs/1/secret", data={"column": "password"})).status_code == 403
        role = "operator"
        assert ">Show</button>" not in (await web.get("/mail_jobs/1")).text
        refused = await web.post("/mail_jobs/1/secret", data={"token": right, "column": "password"})
        assert (refused.status_code, WORD in refused.text) == (403, False)
    assert run(conn, "SELECT count(*) FROM cluster.audit") == [(1,)]


def test_migrate_writes_the_mark_of_a_secret_beside_what_the_comment_says(conn: psycopg.Connection) -> None:
    assert 'COMMENT ON COLUMN "greet_jobs"."password" IS \'cluster:secret\'' in migrate_jobs(conn, [GreetJob])
    assert migrate_jobs(conn, [GreetJob]) == []
    run(conn, "COMMENT ON COLUMN greet_jobs.password IS 'of the host'")
    migrate_jobs(conn, [GreetJob])
    assert run(conn, "SELECT col_description('greet_jobs'::regclass, attnum) FROM pg_attribute WHERE attname = 'password'"
               " AND attrelid = 'greet_jobs'::regclass") == [("of the host cluster:secret",)]  # fmt: skip


# --- saved views ---


async def test_a_filter_is_saved_for_the_team_and_deleted(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    name = "big <b>ones</b>"
    query = {"name": name, "status": "failed", "customer_id__ge": "5"}
    page = await send(web, "/mail_jobs", "/mail_jobs/views", **query)
    assert page.url.query == b"status=failed&customer_id.ge=5&said=" + page.url.query.rpartition(b"said=")[2]
    assert "<b>ones" not in page.text
    tab = r'href="/jobs/mail_jobs\?status=failed&amp;customer_id.ge=5" title="saved by anybody" aria-current="page"'
    assert re.search(tab, page.text)
    await send(web, "/mail_jobs", "/mail_jobs/views", name=name, status="retry")
    assert run(conn, "SELECT name, job_table::text, query, who FROM cluster.views") == [
        (name, "mail_jobs", "status=retry", "anybody")
    ]
    gone = await send(web, "/mail_jobs", "/mail_jobs/views", name=name, do="delete")
    assert "is deleted" in gone.text
    assert run(conn, "SELECT count(*) FROM cluster.views") == [(0,)]
    assert run(conn, "SELECT action FROM cluster.audit ORDER BY id") == [
        ("save view",),
        ("save view",),
        ("delete view",),
    ]


async def test_a_view_that_makes_no_sense_is_refused(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.dashboard.saved.MOST", 1)
    await send(web, "/mail_jobs", "/mail_jobs/views", name="first", status="failed")
    for sent in (
        {"name": "", "status": "failed"}, {"name": "x" * 61, "status": "failed"}, {"name": "no filter"},
        {"name": "second", "status": "failed"}, {"name": "bad", "customer_id__eq": "x"}, {"name": "gone", "do": "delete"},
        {"name": "secret", "password__eq": WORD},
    ):  # fmt: skip
        assert (await send(web, "/mail_jobs", "/mail_jobs/views", **sent)).status_code == 409, sent
    assert run(conn, "SELECT name FROM cluster.views") == [("first",)]


# --- bulk moves ---


async def test_all_that_match_and_wait_are_moved_or_made_due(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(conn, "INSERT INTO mail_jobs (label, customer_id) SELECT n, n FROM generate_series(1, 6) n")
    run(conn, "UPDATE mail_jobs SET status = 'failed', finished_at = now() WHERE id = 1")
    asked = await web.get("/mail_jobs/bulk/move?customer_id.le=3")
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', asked.text))
    assert form["total"] == "2"
    for wrong in ({}, {"to_priority": "0"}, {"to_priority": "x"}, {"to_queue": "q" * 129}):
        assert (await web.post("/mail_jobs/bulk/move", data=form | wrong)).status_code == 409, wrong
    begun = await web.post("/mail_jobs/bulk/move", data=form | {"to_queue": "slow", "to_priority": "90"})
    page = await until_over(web, await web.get(BASE + begun.headers["location"]))
    assert "2 moved" in page.text
    rows = run(conn, "SELECT id FROM mail_jobs WHERE queue = 'slow' AND priority = 90 ORDER BY id")
    assert rows == [(2,), (3,)]
    (said,) = run(conn, "SELECT filter FROM cluster.audit")[0]
    assert said == {"where": ["customer_id at most 3"], "to_queue": "slow", "to_priority": "90"}
    run(
        conn,
        "INSERT INTO mail_jobs (label, run_at) SELECT 'later', now() + interval '1 day' FROM generate_series(1, 3)",
    )
    asked = await web.get("/mail_jobs/bulk/now?label.eq=later")
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', asked.text))
    begun = await web.post("/mail_jobs/bulk/now", data=form)
    await until_over(web, await web.get(BASE + begun.headers["location"]))
    assert run(conn, "SELECT count(*) FROM mail_jobs WHERE status = 'scheduled'") == [(0,)]


async def test_all_that_match_run_again_as_new_jobs_and_none_of_the_new_ones_once_more(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO mail_jobs (label, customer_id, queue) SELECT n, n, 'slow' FROM generate_series(1, 3) n")
    run(conn, "UPDATE mail_jobs SET status = 'failed', finished_at = now() WHERE id < 3")
    asked = await web.get("/mail_jobs/bulk/again?queue=slow")
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', asked.text))
    assert form["total"] == "2", "one has not finished"
    begun = await web.post("/mail_jobs/bulk/again", data=form)
    page = await until_over(web, await web.get(BASE + begun.headers["location"]))
    assert "2 inserted" in page.text
    rows = run(conn, "SELECT label, customer_id, queue, status::text FROM mail_jobs WHERE id > 3 ORDER BY label")
    assert rows == [("1", 1, "slow", "not_started"), ("2", 2, "slow", "not_started")]
    assert run(conn, "SELECT action, count FROM cluster.audit") == [("again all", 2)]
