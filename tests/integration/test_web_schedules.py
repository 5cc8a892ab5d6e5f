"""The dashboard's pages about schedules, asked as a browser asks, on a real Postgres."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import psycopg
import pytest

from cluster.dashboard import User
from cluster.schedule_words import ICONS, MEANINGS
from tests.integration.test_web import TABLES, browsing, send, token
from tests.support.rows import run

JSON = {"accept": "application/json"}
TRACEBACK = 'Traceback (most recent call last):\n  File "jobs.py", line 7, in perform\n    write()\nOSError: disk'
HOSTILE = "a/b?c=d&e <script>alert(1)</script> ../.. %00 \u05e9\u05dc\u05d5\u05dd"


@pytest.fixture
async def web(database_url: str, conn: psycopg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    run(conn, TABLES)
    async with browsing(database_url) as client:
        yield client


def add(conn: psycopg.Connection, name: str, **columns: Any) -> None:
    row = {"name": name, "job_table": "mail_jobs", "every": "1 hour"} | columns
    row = {column: value for column, value in row.items() if value is not None}
    places = ", ".join(["%s"] * len(row))
    run(conn, f"INSERT INTO cluster.schedules ({', '.join(row)}) VALUES ({places})", *row.values())


def page(name: str, of: str = "show") -> str:
    return f"/schedules/{of}?{urlencode({'name': name})}"


async def do(web: httpx.AsyncClient, deed: str, name: str, **values: object) -> httpx.Response:
    return await send(web, page(name), "/schedules", do=deed, name=name, **values)


def audited(conn: psycopg.Connection) -> list[tuple[str, str, Any]]:
    return run(conn, "SELECT action, target, filter FROM cluster.audit ORDER BY id")


# --- looking ---


async def test_the_list_says_of_each_schedule_its_state_its_times_and_what_it_runs(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "report", every=None, cron="0 5 * * *", time_zone="Europe/Berlin")
    add(conn, "off", active=False)
    add(conn, "held", paused_at="now", paused_reason="stocktaking")
    add(conn, "once", run_once=True)
    text = (await web.get("/schedules")).text
    assert "At 05:00 every day, Europe/Berlin" in text
    for state in ("active", "deactivated", "paused", "run_once_waiting"):
        assert f'<span class="status schedule-{state}" title="{MEANINGS[state]}">' in text, state
        assert ICONS[state] in text
        assert f'<span class="hidden">: {MEANINGS[state]}</span>' in text  # for those who hear it
    assert 'href="/jobs/mail_jobs">MailJob' in text or 'href="/jobs/mail_jobs">mail_jobs' in text
    only = (await web.get("/schedules?state=paused")).text
    assert "held" in only
    assert "report" not in only
    assert "report" in (await web.get("/schedules?q=REP")).text


async def test_a_list_of_many_schedules_comes_in_pages(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    run(
        conn,
        "INSERT INTO cluster.schedules (name, job_table, every)"
        " SELECT 's' || n, 'mail_jobs', '1 h' FROM generate_series(100, 249) n",
    )
    address, names = "/schedules", []
    for _ in range(3):
        text = (await web.get(address)).text
        names += re.findall(r"show\?name=(s\d+)", text)
        address = "".join(re.findall(r'rel="next" href="/jobs(/schedules\?[^"]+)"', text)).replace("&amp;", "&")
    assert names == [f"s{n}" for n in range(100, 250)]
    assert address == ""


async def test_the_page_of_a_schedule_has_its_history_with_its_jobs(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "stock", job_values='{"label": "daily"}')
    run(conn, "SELECT cluster.run_schedule('stock')")
    run(conn, "INSERT INTO cluster.schedule_runs (name, due_at, job_table, finished_at, outcome)"
              " SELECT 'stock', now() - n * interval '1 h', 'mail_jobs'::regclass, now(), 'skipped'"
              " FROM generate_series(1, 60) n")  # fmt: skip
    text = (await web.get(page("stock"))).text
    ((number,),) = run(conn, "SELECT id FROM mail_jobs")
    assert f'href="/jobs/mail_jobs/{number}"' in text
    assert 'href="/jobs/schedules/show?name=stock"' in (await web.get(f"/mail_jobs/{number}")).text
    assert text.count('class="status skipped"') == 49
    assert "daily" in text
    (address,) = re.findall(r'rel="next" href="/jobs(/schedules/show\?[^"]+)"', text)
    assert (await web.get(address.replace("&amp;", "&"))).text.count('class="status skipped"') == 11
    shown = (await web.get(page("stock"), headers=JSON)).json()
    assert shown["row"]["job_values"] == {"label": "daily"}
    assert len(shown["next_runs"]) == 5


async def test_a_hostile_name_is_one_like_any_other(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    add(conn, HOSTILE)
    text = (await web.get("/schedules")).text
    assert "<script>alert" not in text
    (address,) = re.findall(r'href="/jobs(/schedules/show\?[^"]+)"', text)
    shown = await web.get(address.replace("&amp;", "&"))
    assert shown.status_code == 200
    assert "<script>alert" not in shown.text
    assert "is paused" in (await do(web, "pause", HOSTILE)).text
    for bad in ("", "nothing", "\x00", "x" * 5000):
        assert (await web.get(page(bad))).status_code == 404, bad
    assert (await web.get(page(HOSTILE) + "&before=yesterday")).status_code == 200


async def test_a_schedule_whose_table_is_gone_is_shown_and_can_be_deleted(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "orphan")
    run(conn, "DROP TABLE mail_jobs")
    assert "is gone" in (await web.get("/schedules")).text
    assert (await web.get(page("orphan"))).status_code == 200
    assert (await web.get(page("orphan", "edit"))).status_code == 409
    assert "is deleted" in (await do(web, "delete", "orphan")).text


async def test_overdue_and_failed_schedules_are_on_the_overview_and_one_that_was_switched_off_is_not(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    for name in ("late", "broken", "off"):
        add(conn, name, expect_within="1 hour")
    run(conn, "UPDATE cluster.schedules SET overdue_since = now() - interval '3 hours' WHERE name = 'late'")
    run(conn, "UPDATE cluster.schedules SET state = 'deactivated', last_error = %s WHERE name = 'broken'", TRACEBACK)
    run(conn, "UPDATE cluster.schedules SET active = false WHERE name = 'off'")
    found = (await web.get("/", headers=JSON)).json()["findings"]
    said = {(each["severity"], each["path"]): each["text"] for each in found}
    assert "overdue: no success for 3 h" in said["bad", "schedules/show?name=late"]
    assert "is deactivated: OSError: disk" in said["warning", "schedules/show?name=broken"]
    assert len(said) == 2


ASKED = ("name", "state", "q", "after", "before", "table", "from", "to", "which")
SENT = (
    "schedule",
    "version",
    "name",
    "cron",
    "every",
    "time_zone",
    "starts_at",
    "overlap",
    "c.count",
    "c.options",
    "c.label",
)
HOSTILE_VALUES = ("", "\x00", "'; DROP TABLE mail_jobs; --", "9" * 5000, "\u202e\ud7ff<b>%s")


async def test_whatever_is_asked_nothing_breaks(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    add(conn, "stock")
    right = {
        "name": "stock",
        "table": "mail_jobs",
        "token": token(await web.get("/schedules")),
        "do": "save",
        "every": "1h",
    }
    answers: list[httpx.Response] = []
    for value in HOSTILE_VALUES:
        for field in ASKED:
            for path in ("", "/show", "/new", "/edit", "/backfill"):
                answers += [await web.get(f"/schedules{path}", params=right | {field: value})]
        for field in SENT:
            for path in ("/save", "/check"):
                answers += [await web.post(f"/schedules{path}", data=right | {field: value})]
        for field in ("do", "name", "reason"):
            answers += [await web.post("/schedules", data=right | {field: value})]
    assert {answer.status_code for answer in answers} <= {200, 303, 404, 409, 422}
    assert all("<b>" not in answer.text for answer in answers if "html" in answer.headers.get("content-type", ""))


# --- deeds ---


async def test_a_schedule_is_paused_resumed_deactivated_activated_run_and_deleted(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "stock")
    state = "SELECT active, paused_reason, paused_at IS NOT NULL FROM cluster.schedules"
    assert "stocktaking" in (await do(web, "pause", "stock", reason="stocktaking")).text
    assert run(conn, state) == [(True, "stocktaking", True)]
    await do(web, "resume", "stock")
    assert run(conn, state) == [(True, None, False)]
    await do(web, "deactivate", "stock")
    assert run(conn, state) == [(False, None, False)]
    await do(web, "activate", "stock")
    assert run(conn, state) == [(True, None, False)]
    assert re.search(r"Job \d+ is new", (await do(web, "run", "stock")).text)
    assert run(conn, "SELECT schedule FROM mail_jobs") == [("stock",)]
    assert "is deleted" in (await do(web, "delete", "stock")).text
    deeds = ["pause", "resume", "deactivate", "activate", "run", "delete"]
    assert [(action, target) for action, target, _ in audited(conn)] == [(deed, "schedule stock") for deed in deeds]
    assert audited(conn)[0][2] == {"reason": "stocktaking"}


async def test_a_job_that_its_table_refuses_is_said_when_a_schedule_is_run(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "stock", job_values='{"customer_id": 1}')
    run(conn, "DELETE FROM customers")
    refused = await do(web, "run", "stock")
    assert refused.status_code == 409
    assert "foreign key" in refused.text
    assert audited(conn) == []


async def test_a_schedule_of_the_code_says_so_and_offers_only_what_may_be_changed(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "CodeJob", source="code")
    text = (await web.get(page("CodeJob"))).text
    assert "belongs to its job class" in text
    offered = set(re.findall(r'name="do" value="(\w+)"', text))
    assert offered == {"run", "pause", "deactivate"}
    assert (await web.get(page("CodeJob", "edit"))).status_code == 409
    assert (await do(web, "delete", "CodeJob")).status_code == 409
    sent = await send(web, page("CodeJob"), "/schedules/save", do="save", schedule="CodeJob", every="1s")
    assert sent.status_code == 409
    assert run(conn, "SELECT every::text FROM cluster.schedules") == [("01:00:00",)]


async def test_a_reload_lets_go_on_what_has_stopped_and_says_while_one_is_running(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "stock")
    run(conn, "UPDATE cluster.schedules SET state = 'stopped'")
    assert "Reloaded: 1 go on" in (await send(web, "/schedules", "/schedules", do="reload")).text
    assert run(conn, "SELECT state FROM cluster.schedules") == [("active",)]
    run(conn, "UPDATE cluster.schedule_service SET reloading_since = now()")
    shown = await web.get("/schedules")
    assert "Reloading since" in shown.text
    assert shown.headers["refresh"] == "1"
    assert (await send(web, "/schedules", "/schedules", do="reload")).status_code == 409


async def test_a_viewer_is_offered_nothing_and_an_operator_does_not_delete(
    database_url: str, conn: psycopg.Connection
) -> None:
    run(conn, TABLES)
    add(conn, "stock")
    role = "viewer"
    async with browsing(database_url, lambda _: User("eve", role)) as web:  # type: ignore[arg-type]
        for path in ("/schedules", page("stock")):
            assert 'method="post"' not in (await web.get(path)).text
        role = "operator"
        assert 'value="delete"' not in (await web.get(page("stock"))).text
        assert (await do(web, "delete", "stock")).status_code == 403
    assert run(conn, "SELECT count(*) FROM cluster.schedules") == [(1,)]


# --- the form ---


async def new(web: httpx.AsyncClient, **values: object) -> httpx.Response:
    return await send(
        web, "/schedules/new?table=mail_jobs", "/schedules/save", **{"do": "save", "table": "mail_jobs", **values}
    )


def problems(response: httpx.Response) -> dict[str, str]:
    """By the field of the page that says them."""
    found = re.findall(
        r'<div class="field refused" data-field="([^"]+)">.*?class="problem-text"[^>]*>([^<]+)<',
        response.text,
        re.DOTALL,
    )
    return dict(found)


async def test_a_schedule_is_made_with_values_of_the_right_types(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    made = await new(
        web, name="report", cron="0 5 * * *", time_zone="Europe/Berlin", starts_at="2030-07-01T00:00", jitter="30s",
        expect_within="90m", overlap="allow", misfire="one", on_error="keep", c__label="daily", c__count="7",
        c__options='{"deep": [1]}', c__priority="9", c__level="high",
    )  # fmt: skip
    assert "report is new" in made.text
    (row,) = run(conn, "SELECT job_values, cron, time_zone, starts_at, jitter::text, expect_within::text, overlap, on_error,"
                       " run_once FROM cluster.schedules")  # fmt: skip
    values = {"label": "daily", "count": "7", "options": {"deep": [1]}, "priority": "9", "level": "high"}
    starts_at = datetime(2030, 6, 30, 22, tzinfo=UTC)
    assert row == (values, "0 5 * * *", "Europe/Berlin", starts_at, "00:00:30", "01:30:00", "allow", "keep", False)
    assert audited(conn) == [("new", "schedule report", {"job_table": "mail_jobs"})]
    run(conn, "SELECT cluster.run_schedule('report')")
    assert run(conn, "SELECT count, options, level::text, priority FROM mail_jobs") == [(7, {"deep": [1]}, "high", 9)]


WRONG: list[tuple[dict[str, str], str, str]] = [
    ({"name": ""}, "name", "needs a name"),
    ({"name": "x" * 129}, "name", "1 to 128"),
    ({"name": "there"}, "name", "already"),
    ({"cron": "0 25 * * *", "every": ""}, "cron", "hour"),
    ({"cron": "@nightly", "every": ""}, "cron", "no alias"),
    ({"cron": "0 0 30 2 *", "every": ""}, "cron", "never matches"),
    ({"every": ""}, "cron", "Give a cron"),
    ({"cron": "@daily"}, "cron", "either"),
    ({"every": "soon"}, "every", "looks like"),
    ({"every": "1ms"}, "every", "1 second"),
    ({"time_zone": "berlin"}, "time_zone", "Europe/Berlin"),
    ({"ends_at": "tomorrow"}, "ends_at", "looks like"),
    ({"starts_at": "2030-01-02T00:00", "ends_at": "2030-01-01T00:00"}, "ends_at", "after"),
    ({"starts_at": "0001-01-01T00:00"}, "starts_at", "our era"),
    ({"jitter": "2h"}, "jitter", "longer"),
    ({"c__options": "[" * 100_000}, "c.options", "not JSON"),
    ({"c__options": "NaN"}, "c.options", "json"),
    ({"c__options": '"\\u0000"'}, "c.options", "unicode"),
    ({"overlap": "never"}, "overlap", "skip, queue_one"),
    ({"c__count": "many"}, "c.count", "integer"),
    ({"c__count": "100"}, "c.count", "check"),
    ({"c__customer_id": "9"}, "c.customer_id", "foreign key"),
    ({"c__options": "{"}, "c.options", "not JSON"),
    ({"c__level": "middling"}, "c.level", "enum"),
    ({"c__priority": "101"}, "c.priority", "priority"),
]  # fmt: skip


async def test_what_can_not_be_is_said_at_the_field(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    add(conn, "there")
    plain = {
        "name": "report",
        "every": "1h",
        "overlap": "skip",
        "misfire": "one",
        "on_error": "keep",
        "table": "mail_jobs",
    }
    plain["token"] = token(await web.get("/schedules/new?table=mail_jobs"))
    for values, field, said in WRONG:
        form = {name.replace("__", "."): value for name, value in (plain | values).items()}
        for button in ("check", "save"):
            refused = await web.post("/schedules/save", data=form | {"do": button})
            assert refused.status_code == 422, values
            assert list(problems(refused)) == [field], values
            assert said.lower() in problems(refused)[field].lower()
    assert run(conn, "SELECT count(*) FROM cluster.schedules") == [(1,)]


async def test_check_without_a_script_says_the_times_and_keeps_nothing(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    form = {
        "name": "report",
        "cron": "30 2 * * *",
        "time_zone": "Europe/Berlin",
        "overlap": "skip",
        "misfire": "one",
        "on_error": "keep",
    }
    shown = await new(web, **{**form, "do": "check"})
    assert shown.status_code == 200
    assert "Postgres would take it" in shown.text
    assert "At 02:30 every day, Europe/Berlin" in shown.text
    assert len(re.findall(r"<li><time[^>]*>\w{3} \d\d \w{3} \d{4}, 0[23]:\d\d</time>", shown.text)) == 5
    assert run(conn, "SELECT (SELECT count(*) FROM cluster.schedules), (SELECT count(*) FROM mail_jobs)") == [(0, 0)]


async def test_while_somebody_types_the_script_is_told_times_and_problems(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    form = {"table": "mail_jobs", "name": "x", "cron": "*/5 * * * *", "c__count": "many", "c__options": "{"}
    told = (await send(web, "/schedules/new?table=mail_jobs", "/schedules/check", **form)).json()
    assert told["words"] == "Every fifth minute of every hour"
    assert len(told["runs"]) == told["html"].count("<li>") == 5
    assert {name for name, problem in told["problems"].items() if problem} == {"c.count", "c.options"}
    assert run(conn, "SELECT nextval(pg_get_serial_sequence('mail_jobs', 'id'))") == [(1,)]  # nothing was tried


async def test_an_edit_keeps_what_it_does_not_touch_and_the_next_run(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "stock", job_values='{"label": null, "count": 3, "options": {"a": [1, "é"]}}', every="90 seconds",
        jitter="1.5 seconds", starts_at="2020-01-01 00:00:00.123456+00")  # fmt: skip
    before = run(conn, "SELECT next_due_at, plan_from, revision, starts_at, jitter, job_values FROM cluster.schedules")
    opened = (await web.get(page("stock", "edit"))).text
    sent = form_of(opened) | {"on_error": "keep", "do": "save"}
    saved = await web.post("/schedules/save", data=sent, headers={"sec-fetch-site": "same-origin"})
    assert saved.status_code == 303, saved.text
    assert (
        run(conn, "SELECT next_due_at, plan_from, revision, starts_at, jitter, job_values FROM cluster.schedules")
        == before
    )
    assert run(conn, "SELECT on_error FROM cluster.schedules") == [("keep",)]
    assert audited(conn) == [("edit", "schedule stock", {"changed": "on_error"})]


def form_of(text: str) -> dict[str, str]:
    """What a browser would send of the page's last form."""
    inputs = re.findall(r'<input (?![^>]*type="checkbox")[^>]*?name="([^"]+)"[^>]*?value="([^"]*)"', text)
    areas = re.findall(r'<textarea [^>]*name="([^"]+)"[^>]*>\n(.*?)</textarea>', text, re.DOTALL)
    selects = re.findall(r'<select [^>]*name="([^"]+)"[^>]*>(.*?)</select>', text, re.DOTALL)
    found = {name: html.unescape(value) for name, value in [*inputs, *areas]}
    for name, options in selects:
        chosen = re.search(r'<option(?: value="([^"]*)")? selected>([^<]*)', options)
        found[name] = "" if chosen is None else chosen[1] if chosen[1] is not None else chosen[2]
    return found


async def test_of_two_who_edit_the_same_schedule_the_second_is_told_and_may_insist(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "stock")
    first = form_of((await web.get(page("stock", "edit"))).text) | {"every": "2h", "do": "save"}
    second = first | {"every": "3h", "expect_within": "1d"}
    here = {"sec-fetch-site": "same-origin"}
    assert (await web.post("/schedules/save", data=first, headers=here)).status_code == 303
    told = await web.post("/schedules/save", data=second, headers=here)
    assert told.status_code == 409
    assert "by the audit anybody" in told.text
    assert "It is now: 2h" in told.text
    assert "It is now: empty" in told.text
    assert run(conn, "SELECT every::text FROM cluster.schedules") == [("02:00:00",)]
    again = form_of(told.text) | {"do": "save"}
    assert again["every"] == "3h"
    assert (await web.post("/schedules/save", data=again, headers=here)).status_code == 303
    assert run(conn, "SELECT every::text FROM cluster.schedules") == [("03:00:00",)]


# --- backfill ---


async def test_a_backfill_is_shown_first_and_then_inserts_exactly_those(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    add(conn, "report", every=None, cron="0 * * * *", time_zone="Europe/Berlin", active=False)
    span = {"from": "2026-01-01T00:00", "to": "2026-01-01T06:30", "which": "missing"}
    run(conn, "UPDATE cluster.schedules SET created_at = '2027-01-01' WHERE name = 'report'")
    shown = await web.get(f"{page('report', 'backfill')}&{urlencode(span)}")
    assert "Insert 7 jobs" in shown.text
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(0,)]
    sent = form_of(shown.text) | span
    done = await web.post("/schedules/backfill", data=sent, headers={"sec-fetch-site": "same-origin", **JSON})
    assert done.json() == {"said": "7 jobs are new."}
    first, last, count = run(conn, "SELECT min(scheduled_for), max(scheduled_for), count(*) FROM mail_jobs")[0]
    assert (first, last, count) == (datetime(2025, 12, 31, 23, tzinfo=UTC), datetime(2026, 1, 1, 5, tzinfo=UTC), 7)
    again = await web.get(f"{page('report', 'backfill')}&{urlencode(span)}")
    assert "nothing to make up for" in again.text
    assert run(conn, "SELECT action, target, filter ->> 'which', count FROM cluster.audit") == [
        ("backfill", "schedule report", "missing", 7)
    ]


async def test_a_backfill_of_too_many_is_refused_in_words(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    add(conn, "quick", every="1 second")
    refused = await web.get(f"{page('quick', 'backfill')}&from=2020-01-01T00:00&to=2021-01-01T00:00")
    assert refused.status_code == 422
    assert "more than 10000" in refused.text
    for first, last in (("0001-01-01", "9999-12-31"), ("\x00", "now"), ("2026-01-01T00:00-23:59", "2026-01-01")):
        asked = urlencode({"from": first, "to": last, "which": "none"})
        assert (await web.get(f"{page('quick', 'backfill')}&{asked}")).status_code in (200, 422), (first, last)


async def test_what_the_dashboards_role_in_postgres_may_not_do_is_not_offered(
    database_url: str, conn: psycopg.Connection
) -> None:
    """The grants are those of docs/production.md."""
    run(conn, TABLES)
    add(conn, "stock")
    role = f"web_{uuid4().hex}"
    url = database_url.replace("//postgres@", f"//{role}@")
    run(conn, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA cluster, public TO {role}")
    grants = {
        "GRANT INSERT, UPDATE ON cluster.audit TO {}; GRANT UPDATE, DELETE ON cluster.schedules TO {}": {
            "pause", "deactivate", "delete",
        },
        "GRANT INSERT ON public.mail_jobs, cluster.schedule_runs TO {}": {"run"},
        "GRANT DELETE ON cluster.schedule_runs TO {}": {"backfill"},
    }  # fmt: skip
    try:
        offered: set[str] = set()
        async with browsing(url) as web:
            for grant, more in grants.items():
                assert what_is_offered((await web.get(page("stock"))).text) == offered
                run(conn, grant.format(role, role))
                offered |= more
            assert what_is_offered((await web.get(page("stock"))).text) == offered
            assert "is paused" in (await do(web, "pause", "stock")).text
            assert "is new" in (await do(web, "run", "stock")).text
            assert "/schedules/new" not in (await web.get("/schedules")).text
            run(
                conn, f"GRANT INSERT ON cluster.schedules TO {role}; GRANT UPDATE ON cluster.schedule_service TO {role}"
            )
            assert (
                "report is new"
                in (await new(web, name="report", every="1h", overlap="skip", misfire="one", on_error="keep")).text
            )
            assert "Reloaded" in (await send(web, "/schedules", "/schedules", do="reload")).text
    finally:
        run(conn, f"DROP OWNED BY {role}; DROP ROLE {role}")


def what_is_offered(text: str) -> set[str]:
    deeds = set(re.findall(r'name="do" value="(\w+)"', text))
    return deeds | ({"backfill"} if "/schedules/backfill" in text else set())


async def test_what_is_secret_in_a_schedule_is_shown_nowhere_and_kept(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "COMMENT ON COLUMN mail_jobs.label IS 'cluster:secret'")
    add(conn, "stock", job_values='{"label": "hunter2hunter2", "count": 3}')
    run(conn, "UPDATE cluster.schedules SET last_error = 'ValueError: hunter2hunter2 is wrong'")
    for path in (page("stock"), page("stock", "edit")):
        for accept in ("text/html", "application/json"):
            shown = await web.get(path, headers={"accept": accept})
            assert shown.status_code == 200
            assert "hunter2" not in shown.text, (path, accept)
    sent = form_of((await web.get(page("stock", "edit"))).text) | {"c.count": "4", "do": "save"}
    assert (await web.post("/schedules/save", data=sent)).status_code == 303
    assert run(conn, "SELECT job_values FROM cluster.schedules") == [({"label": "hunter2hunter2", "count": "4"},)]
    sent |= {"c.label": "swordfish", "version": "old"}
    assert "swordfish" not in (await web.post("/schedules/save", data=sent)).text
