"""The dashboard's pages of errors: groups, one group, and the failed attempts of a job."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest

from cluster import statements
from cluster.dashboard import User
from cluster.dashboard.error_groups import MOST, SPANS
from tests.integration.test_web import BASE, TABLES, browsing, until_over
from tests.support.rows import run

TRACE = """Traceback (most recent call last):
  File "/srv/app/shop/jobs.py", line 7, in perform
    charge(self.customer_id)
  File "/srv/app/.venv/lib/python3.12/site-packages/httpx/_client.py", line 9, in send
    raise error
  File "/srv/app/.venv/lib/python3.12/site-packages/httpx/_transport.py", line 99, in handle
    raise error
LookupError: no customer {}"""
FAIL = """
INSERT INTO cluster.failures (job_table, job_id, attempt, at, node, outcome, fingerprint, error)
SELECT %(table)s::regclass, id, 1, now() - %(ago)s::interval - id * interval '1 us', NULL, %(outcome)s, %(fingerprint)s,
       replace(%(error)s, '{}', id::text)
FROM generate_series(%(first)s::bigint, %(last)s) AS id
"""


def fail(
    conn: psycopg.Connection, ids: range, fingerprint: str = "lookup", ago: str = "1 hour", table: str = "mail_jobs",
    error: str = TRACE, outcome: str = "failed",
) -> None:  # fmt: skip
    """A failed attempt of each."""
    values = {"ago": ago, "fingerprint": fingerprint, "table": table, "error": error, "outcome": outcome}
    conn.execute(FAIL, values | {"first": ids.start, "last": ids.stop - 1})


@pytest.fixture
async def web(database_url: str, conn: psycopg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    """91 of 100 jobs have failed in the same way."""
    run(conn, TABLES)
    run(conn, "SELECT cluster.create_job_table('sms_jobs')")
    old = "now() - interval '30 days'"
    run(conn, f"INSERT INTO mail_jobs (created_at) SELECT {old} FROM generate_series(1, 100)")
    run(conn, "UPDATE mail_jobs SET status = 'failed', finished_at = now(), last_error = 'x'")
    run(conn, f"INSERT INTO sms_jobs (created_at) VALUES ({old})")
    fail(conn, range(1, 92))
    fail(conn, range(92, 101), "disk", error="OSError: disk {} is full")
    fail(conn, range(1, 2), "lookup", table="sms_jobs", ago="2 hours")
    async with browsing(database_url) as client:
        yield client


async def as_json(web: httpx.AsyncClient, path: str) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = (await web.get(path, headers={"accept": "application/json"})).json()
    return found


# --- the groups ---


async def test_the_same_error_is_one_line_across_types(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    page = await web.get("/errors")
    first, second = re.findall(r"<tr>\n<th scope=\"row\">.*?</tr>", page.text, re.DOTALL)
    assert "LookupError: no customer 1<" in first
    assert ">92 " in first
    assert "mail_jobs, sms_jobs" in first
    assert "OSError: disk 92 is full" in second
    assert first.count("<rect") == 2, "two hours had some"
    assert "style=" not in page.text


async def test_only_the_chosen_time_counts(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    fail(conn, range(1, 6), "older", ago="3 days", error="ValueError: long ago")
    assert "long ago" not in (await web.get("/errors")).text
    assert "long ago" in (await web.get("/errors?since=7d")).text
    assert "long ago" not in (await web.get("/errors?since=nonsense")).text
    assert (await web.get("/errors/older")).status_code == 404
    assert (await web.get("/errors/older?since=7d")).status_code == 200
    run(conn, "TRUNCATE cluster.failures")
    assert "No attempt has failed in the last 1h" in (await web.get("/errors?since=1h")).text


async def test_what_was_not_there_before_the_last_deploy_is_new(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    node = "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, started_at)"
    row = "VALUES (gen_random_uuid(), '', 1, %s, '{}', '{}', now(), 1, now() - %s::interval)"
    run(conn, f"{node} {row}", "1", "1 day")
    assert "Not seen before the last deploy" not in (await web.get("/errors")).text, "nobody knows of one"
    for ago in ("90 minutes", "1 minute"):
        run(conn, f"{node} {row}", "2", ago)
    groups = (await as_json(web, "/errors"))["groups"]
    assert {group["fingerprint"]: group["is_new"] for group in groups} == {"lookup": False, "disk": True}


@pytest.mark.parametrize("since", SPANS)
def test_the_groups_are_read_from_their_index_and_no_further_than_needed(since: str, conn: psycopg.Connection) -> None:
    run(conn, "SELECT cluster.create_job_table('mail_jobs')")
    fail(conn, range(1, 20_001), "many", ago="1 minute", error="x" * 500)
    fail(conn, range(1, 4), "few", ago="5 hours", error="x" * 500)
    span, buckets = SPANS[since]
    values = {"only": None, "since": span, "most": 50, "buckets": buckets, "groups": 50}
    for analyze in ("SELECT 1", "ANALYZE cluster.failures"):
        conn.execute(analyze.encode())
        plan = conn.execute(
            b"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) " + statements.text("list_error_groups").encode(), values
        )
        lines = [line for (line,) in plan.fetchall()]
        assert not [line for line in lines if re.search(r"failures_at|failures_pkey|Seq Scan on failures", line)], lines
        read = re.search(r"shared hit=(\d+)", next(line for line in lines if "Buffers" in line))
        assert read
        assert int(read[1]) < 3000, "\n".join(lines)


# --- one group ---


async def test_exactly_the_jobs_of_a_group_that_are_failed_now_are_retried(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    fail(conn, range(5, 6), "disk", ago="0", error="OSError: disk")  # its last attempt had the other one
    run(conn, "SELECT cluster.retry('mail_jobs', id) FROM generate_series(1, 4) AS id")
    page = await web.get("/errors/lookup")
    assert "LookupError: no customer 1<" in page.text
    address = re.findall(r'href="([^"]*bulk/retry[^"]*)"', page.text)
    assert len(address) == 1, "the other type has none that failed for good"
    asked = await web.get(BASE + address[0].replace("&amp;", "&"))
    assert "Retry 86 jobs?" in asked.text
    assert "still goes on" not in asked.text
    listed = await web.get("/mail_jobs?status=failed&group=lookup&size=50")
    assert listed.text.count('class="status failed"') == 50 + 1, "the filter's own is one"
    form = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked.text)
    begun = await web.post("/mail_jobs/bulk/retry", data=_form(form))
    done = await until_over(web, await web.get(BASE + begun.headers["location"]))
    assert "86 not started" in done.text
    left = run(conn, "SELECT array_agg(id ORDER BY id) FROM mail_jobs WHERE status = 'failed'")
    assert left == [([5, *range(92, 101)],)]
    assert run(conn, "SELECT filter ->> 'group', count FROM cluster.audit") == [("lookup", 86)]


def _form(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {name: [value for other, value in pairs if other == name] for name, _ in pairs}


async def test_a_group_that_still_grows_says_so_before_it_is_retried(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    fail(conn, range(1, 4), ago="1 minute")
    assert "3 attempts failed so in the last five minutes" in (await web.get("/errors/lookup")).text
    asked = await web.get("/mail_jobs/bulk/retry?status=failed&group=lookup")
    assert "3 attempts failed so in the last five minutes" in asked.text
    assert "3 just now" in (await web.get("/errors")).text


async def test_a_group_of_any_size_is_found_and_not_counted_to_its_end(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "INSERT INTO sms_jobs SELECT FROM generate_series(1, %s)", MOST + 10)
    fail(conn, range(1, MOST + 10), "storm", table="sms_jobs", error="OSError: storm")
    run(conn, "UPDATE sms_jobs SET status = 'failed', finished_at = now() WHERE id IN (1, 2)")
    page = await web.get("/errors/storm")
    assert f"{MOST:,}+ in the last 24h" in page.text
    listed = await web.get("/sms_jobs?status=failed&group=storm")
    assert set(re.findall(r'href="/jobs/sms_jobs/(\d+)"', listed.text)) == {"1", "2"}


async def test_a_table_that_is_locked_or_dropped_spoils_only_its_own_row(
    web: httpx.AsyncClient, conn: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE sms_jobs")
        page = await web.get("/errors/lookup")
        assert "read</span>" in page.text
        assert "Retry these" in page.text
    run(conn, "DROP TABLE sms_jobs")
    page = await web.get("/errors/lookup")
    assert "sms_jobs" not in page.text
    assert "Retry these" in page.text


async def test_a_viewer_is_offered_no_retry(web: httpx.AsyncClient, database_url: str) -> None:
    async with browsing(database_url, lambda _: User("eve", "viewer")) as other:
        page = (await other.get("/errors/lookup")).text
    assert "mail_jobs" in page
    assert "Retry these" not in page


async def test_nonsense_for_a_fingerprint_is_no_error(web: httpx.AsyncClient) -> None:
    for path in ("/errors/none", "/errors/%00", "/errors/" + "x" * 3000, "/errors/%ff"):
        assert (await web.get(path)).status_code == 404, path
    assert (await web.get("/mail_jobs?group=%00%ff")).status_code == 200


# --- a job ---


async def test_a_job_shows_every_failed_attempt_with_its_own_error(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    node = "5f0c0e58-3cd5-4f47-9d2f-7a06a5f7c7a1"
    run(conn, "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)"
        " VALUES (%s, 'web-7', 42, '1', '{}', '{}', now(), 1)", node)  # fmt: skip
    fail(
        conn,
        range(1, 2),
        "timeout",
        ago="10 minutes",
        error="timed out after 3 s; it was stopped here",
        outcome="timed_out",
    )
    run(conn, "UPDATE cluster.failures SET node = %s WHERE job_id = 1 AND fingerprint = 'timeout'", node)
    fail(conn, range(1, 2), ago="31 days", error="of the job that had the id before")
    page = (await web.get("/mail_jobs/1")).text
    told = ("inserted", "LookupError: no customer 1", "attempt 1 timed out", "web-7:42", "timed out after 3 s")
    places = [page.index(text) for text in told]
    assert places == sorted(places)
    assert page.count('class="failure"') == 2
    assert 'href="/jobs/errors/lookup"' in page
    assert "had the id before" not in page


async def test_lines_of_libraries_are_folded_and_the_users_stand_out(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    conn.execute("UPDATE mail_jobs SET last_error = %s WHERE id = 1", [TRACE.format("<b>1</b>")])
    page = (await web.get("/mail_jobs/1")).text.split('id="error"')[1]
    users = re.search(r'<pre class="users">(.*?)</pre>', page, re.DOTALL)
    folded = re.search(r"<details>.*?</details>", page, re.DOTALL)
    assert users
    assert users[1] == "  File &#34;/srv/app/shop/jobs.py&#34;, line 7, in perform\n    charge(self.customer_id)"
    assert folded
    assert "2 lines of libraries" in folded[0]
    assert "<b>1" not in page


async def test_a_role_that_may_not_read_failures_sees_the_rest(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    run(conn, "ALTER TABLE cluster.failures RENAME TO gone")
    for path in ("/", "/mail_jobs/1"):
        assert (await web.get(path)).status_code == 200, path
    assert (await web.get("/errors")).status_code == 404


# --- the overview ---


async def test_the_overview_names_an_error_that_comes_more_often(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    assert "comes more often" not in (await web.get("/")).text, "it was an hour ago"
    fail(conn, range(1, 41), "steady", ago="40 minutes", error="OSError: as ever")
    fail(conn, range(1, 11), "steady", ago="2 minutes", error="OSError: as ever")
    fail(conn, range(1, 31), "sudden", ago="1 minute", error="OSError: all of a sudden")
    found = (await as_json(web, "/"))["findings"]
    growing = [each for each in found if "more often" in each["text"]]
    assert [(each["path"], each["severity"]) for each in growing] == [("errors/sudden", "warning")]
    assert "30 attempts failed in the last 10 min, none in the hour before" in growing[0]["text"]
    page = await web.get("/")
    assert 'href="/jobs/errors/sudden"' in page.text
