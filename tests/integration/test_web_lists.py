"""The dashboard's filters by columns, what foreign keys stand for, and SQL to copy."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest

from cluster.dashboard import User
from tests.integration.test_web import BASE, browsing, token, until_over
from tests.support.rows import run

TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY, email text, name text);
INSERT INTO customers SELECT n, 'c' || n || '@example.org', 'Customer ' || n FROM generate_series(1, 100) n;
SELECT cluster.create_job_table('mail_jobs');
CREATE TYPE level AS ENUM ('low', 'high');
ALTER TABLE mail_jobs ADD COLUMN label text, ADD COLUMN customer_id integer REFERENCES customers, ADD COLUMN level level,
    ADD COLUMN price numeric, ADD COLUMN at timestamptz, ADD COLUMN is_big boolean, ADD COLUMN options jsonb,
    ADD COLUMN tags text[], ADD COLUMN "we""ird.%s {x}" text;
INSERT INTO mail_jobs (label, customer_id, level, price, at, is_big, options, tags, priority, "we""ird.%s {x}")
SELECT 'label ' || n, n, CASE WHEN n % 2 = 0 THEN 'low' ELSE 'high' END::level, n * 1.5,
    '2026-01-01 00:00+00'::timestamptz + n * interval '1 day', n > 8, jsonb_build_object('n', n), ARRAY['all', 't' || n],
    n * 10, 'w' || n FROM generate_series(1, 9) n;
INSERT INTO mail_jobs (label) VALUES (NULL);
"""


@pytest.fixture
async def web(database_url: str, conn: psycopg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    run(conn, TABLES)
    async with browsing(database_url) as client:
        yield client


async def ids(web: httpx.AsyncClient, **conditions: object) -> list[int]:
    query = {name.replace("__", "."): str(value) for name, value in conditions.items()}
    response = await web.get("/mail_jobs", params=query, headers={"accept": "application/json"})
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["page"]["jobs"]][::-1]


async def test_jobs_are_filtered_by_any_column_with_what_suits_its_type(web: httpx.AsyncClient) -> None:
    assert await ids(web, label__eq="label 3") == [3]
    assert await ids(web, label__has="el 3") == [3]
    assert await ids(web, label__starts="label") == list(range(1, 10))
    assert await ids(web, label__ne="label 3", customer_id__le=4) == [1, 2, 4]
    assert await ids(web, label__null="") == [10]
    assert await ids(web, label__set="", price__gt="12") == [9]
    assert await ids(web, customer_id__eq=5) == [5]
    assert await ids(web, level__eq="low") == [2, 4, 6, 8]
    assert await ids(web, price__lt="3.1") == [1, 2]
    assert await ids(web, at__ge="2026-01-09") == [8, 9]
    assert await ids(web, at__lt="2026-01-03 01:00+01") == [1]
    assert await ids(web, is_big__eq="true") == [9]
    assert await ids(web, options__has='{"n": 7}') == [7]
    assert await ids(web, tags__has="t4") == [4]
    assert await ids(web, priority__ge=80, attempts_count__eq=0) == [8, 9]
    assert await ids(web, locked_by__null="", priority__eq=10) == [1]
    assert await ids(web, **{'we"ird.%s {x}.eq': "w6"}) == [6]


NONSENSE = {
    "customer_id.eq=many": "invalid input syntax", "customer_id.eq=99999999999999999999": "out of range",
    "customer_id.has=1": "can't be asked of integer", "level.eq=middle": "invalid input value",
    "at.lt=yesteryear": "invalid input syntax", "options.has={": "invalid input syntax", "nothing.eq=1": "no such column",
    "label.eq=a%00b": "NUL", "label%22 OR true --.eq=1": "no such column", "label.eq=" + "x" * 3000: "characters at most",
    "&".join(f"label.ne={n}" for n in range(25)): "conditions are enough",
}  # fmt: skip


async def test_a_condition_that_makes_no_sense_is_said_and_nothing_is_done(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    right = token(await web.get("/mail_jobs"))
    form = {"content-type": "application/x-www-form-urlencoded"}
    for condition, said in NONSENSE.items():
        page = await web.get(f"/mail_jobs?{condition}")
        assert (page.status_code, "/bulk/" in page.text) == (422, False), condition
        assert said in html.unescape(page.text), condition
        refused = await web.get(f"/mail_jobs/bulk/delete?status=not_started&{condition}")
        assert (refused.status_code, said in html.unescape(refused.text)) == (409, True), condition
        sent = await web.post("/mail_jobs/bulk/delete", content=f"token={right}&{condition}", headers=form)
        assert sent.status_code == 409, condition
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(10,)]


async def test_what_would_only_be_left_out_of_a_filter_stops_an_action_on_all(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    right = {"token": token(await web.get("/mail_jobs")), "status": "not_started"}
    for odd in ({"status": "nonsense"}, {"since": "2w"}, {"error": "x" * 501}, {"error": "a\x00b"}, {"queue": "a\x00"}):
        sent = await web.post("/mail_jobs/bulk/delete", data=right | {"queue": "default"} | odd)
        assert sent.status_code == 409, odd
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(10,)]


async def test_values_of_filters_are_only_values(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    hostile = "'; DROP TABLE mail_jobs; -- %s {x} <script>alert(1)</script>"
    page = await web.get("/mail_jobs", params={"label.eq": hostile, 'we"ird.%s {x}.has': hostile})
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert run(conn, "SELECT count(*) FROM mail_jobs") == [(10,)]


async def test_a_filter_is_built_without_a_script_and_stays_in_the_address(web: httpx.AsyncClient) -> None:
    first = await web.get("/mail_jobs?status=not_started&column=&op=&value=&add=customer_id")
    assert first.status_code == 303
    page = await web.get(BASE + first.headers["location"])
    assert '<option value="ge"' in page.text
    assert re.search(r'<option value="7">\s*Customer 7\s*</option>', page.text)
    second = await web.get("/mail_jobs?status=not_started&column=customer_id&op=ge&value=9&add=")
    assert second.headers["location"] == "/jobs/mail_jobs?status=not_started&customer_id.ge=9"
    page = await web.get(BASE + second.headers["location"])
    assert page.text.count('scope="row"') == 1
    without = re.findall(r'href="([^"]+)" aria-label="Without customer_id"', page.text)
    assert without == ["/jobs/mail_jobs?status=not_started"]


async def test_all_that_match_a_column_are_acted_on_and_no_others(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    asked = await web.get("/mail_jobs/bulk/cancel?customer_id.le=4&at.gt=2026-01-03")
    assert "Cancel 2 jobs?" in asked.text
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', asked.text))
    assert form["at.gt"] == "2026-01-03 00:00:00+00"
    begun = await web.post("/mail_jobs/bulk/cancel", data=form)
    assert "done" in (await until_over(web, await web.get(BASE + begun.headers["location"]))).text
    assert run(conn, "SELECT id FROM mail_jobs WHERE status = 'cancelled' ORDER BY id") == [(3,), (4,)]
    (said,) = run(conn, "SELECT filter FROM cluster.audit")[0]
    assert said == {"where": ["customer_id at most 4", "at above 2026-01-03 00:00:00+00"]}


async def test_a_few_with_an_indexed_value_are_found_among_any_number_of_newer_ones(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.dashboard.lists.SPAN", 3)
    page = await web.get("/mail_jobs?customer_id.eq=2")
    assert "3 jobs were looked at, down to id 7" in page.text
    run(conn, "CREATE INDEX ON mail_jobs (customer_id)")
    assert await ids(web, customer_id__eq=2) == [2]
    assert await ids(web, customer_id__le=3, level__eq="high") == [1, 3]


async def test_a_row_that_a_foreign_key_points_to_is_called_by_its_name(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    page = await web.get("/mail_jobs")
    assert re.search(r'<a href="/jobs/mail_jobs\?customer_id.eq=7"[^>]*>Customer 7</a>', page.text)
    assert "Customer 7" in (await web.get("/mail_jobs/7")).text
    run(conn, "ALTER TABLE customers DROP COLUMN name")
    assert "c7@example.org" in (await web.get("/mail_jobs")).text
    run(conn, "ALTER TABLE customers DROP COLUMN email")
    assert (await web.get("/mail_jobs")).status_code == 200


async def test_labels_cost_one_statement_for_a_column_whatever_the_number_of_rows(
    web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = psycopg.AsyncConnection.execute

    async def execute(self: Any, query: Any, *rest: Any, **named: Any) -> Any:
        asked.append(query)
        return await real(self, query, *rest, **named)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", execute)
    await web.get("/mail_jobs")
    many = len(asked)
    asked.clear()
    await web.get("/mail_jobs?before=2")
    assert len(asked) == many


async def test_rows_of_a_large_table_are_found_by_key_and_by_name(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def offered(text: str) -> list[str]:
        found = await web.get("/mail_jobs/options", params={"column": "customer_id", "q": text})
        return [each["label"] for each in found.json()]

    assert len(await offered("")) == 50
    assert await offered("42") == ["Customer 42"]
    assert await offered("CUSTOMER 7") == ["Customer 7", *[f"Customer {n}" for n in range(70, 80)]]
    assert await offered("%' OR 1=1") == []
    assert await offered("\x00") != []
    monkeypatch.setattr("cluster.dashboard.related.SPAN", 10)
    assert await offered("Customer 99") == []
    run(conn, "CREATE INDEX ON customers (name)")
    assert await offered("Customer 99") == ["Customer 99"]
    for column in ("label", "nothing", "id", "\x00"):
        assert (await web.get("/mail_jobs/options", params={"column": column})).json() == []


async def test_a_table_that_may_not_be_read_gives_no_labels_and_spoils_nothing(
    database_url: str, conn: psycopg.Connection
) -> None:
    run(conn, TABLES)
    run(conn, "DROP ROLE IF EXISTS label_reader; CREATE ROLE label_reader LOGIN")
    run(conn, "GRANT SELECT ON ALL TABLES IN SCHEMA cluster TO label_reader; GRANT SELECT ON mail_jobs TO label_reader")
    try:
        async with browsing(database_url.replace("//postgres@", "//label_reader@")) as web:
            page = await web.get("/mail_jobs?add=customer_id")
            assert page.status_code == 200
            assert "Customer 7" not in page.text
            run(conn, "GRANT SELECT (id, email) ON customers TO label_reader")
            assert "c7@example.org" in (await web.get("/mail_jobs")).text
    finally:
        run(conn, "DROP OWNED BY label_reader; DROP ROLE label_reader")


async def test_a_filter_and_a_job_can_be_copied_as_sql_that_does_the_same(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    hostile = 'it\'s 100% \\ "x" %(where0)s'
    conn.execute('UPDATE mail_jobs SET label = %s, "we""ird.%%s {x}" = %s WHERE id = 3', [hostile, hostile])
    query = {
        "status": "not_started",
        "label.eq": hostile,
        'we"ird.%s {x}.eq': hostile,
        "since": "7d",
        "queue": "default",
    }
    page = await web.get("/mail_jobs", params=query)
    (text,) = re.findall(r'<pre tabindex="0">(.*?)</pre>', page.text, re.DOTALL)
    assert [row[0] for row in conn.execute(html.unescape(text).encode()).fetchall()] == [3]
    page = await web.get("/mail_jobs/3")
    (text,) = re.findall(r'<pre tabindex="0">(.*?)</pre>', page.text, re.DOTALL)
    select, insert = html.unescape(text).split("\n\n")
    assert [row[0] for row in conn.execute(select.encode()).fetchall()] == [3]
    conn.execute(insert.encode())
    same = "label, customer_id, level, price, at, is_big, options, tags, priority, queue"
    assert run(conn, f"SELECT {same} FROM mail_jobs WHERE id = 3") == run(
        conn, f"SELECT {same} FROM mail_jobs WHERE id = 11"
    )


async def test_a_value_that_is_shown_cut_can_be_had_as_a_file(
    web: httpx.AsyncClient, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(conn, "UPDATE mail_jobs SET label = repeat('x<', 5000000) WHERE id = 1")
    page = await web.get("/mail_jobs/1")
    assert len(page.text) < 60_000
    (link,) = re.findall(r'href="([^"]+)">Download all of it', page.text)
    file = await web.get(BASE + link)
    assert file.text == "x<" * 5_000_000
    assert file.headers["content-disposition"] == 'attachment; filename="mail_jobs-1-label.txt"'
    assert file.headers["content-type"].startswith("text/plain")
    for path in (
        "/mail_jobs/1/value?column=nothing",
        "/mail_jobs/x/value?column=label",
        "/mail_jobs/10/value?column=label",
    ):
        assert (await web.get(path)).status_code == 404, path
    monkeypatch.setattr("cluster.dashboard.lists.LONGEST_DOWNLOAD", 1000)
    assert (await web.get(BASE + link)).status_code == 404


async def test_hostile_names_of_tables_columns_and_types_are_names_everywhere(
    web: httpx.AsyncClient, conn: psycopg.Connection
) -> None:
    target, table, column = 'cu%st{o}"mers', 'we"ird <b>%s {table}', "a\".%(where0)s <i>{x}'"
    ident = psycopg.sql.Identifier
    create = """
    CREATE TABLE {target} (id integer PRIMARY KEY, name text); INSERT INTO {target} VALUES (1, 'One <b>'), (2, 'Two');
    CREATE INDEX ON {target} (name); CREATE TYPE {type} AS ENUM ('x', 'y');
    SELECT cluster.create_job_table(quote_ident({name}));
    ALTER TABLE {table} ADD COLUMN {column} integer REFERENCES {target}, ADD COLUMN kind {type};
    INSERT INTO {table} ({column}, kind) VALUES (1, 'x'), (2, 'y'); CREATE INDEX ON {table} ({column})
    """
    names = {"target": ident(target), "table": ident(table), "column": ident(column), "type": ident('t%s {y} "')}
    conn.execute(psycopg.sql.SQL(create).format(**names, name=psycopg.sql.Literal(table)))
    path = re.findall(r'href="/jobs(/oid-\d+)"', (await web.get("/")).text)[0]
    page = await web.get(path)
    assert "One &lt;b&gt;</a>" in page.text
    link = re.findall(r'<a href="/jobs(/oid-\d+\?[^"]+)" title="1:', page.text)[0]
    page = await web.get(html.unescape(link) + "&kind.eq=x")
    assert page.text.count('scope="row"') == 1
    assert "<i>" not in page.text
    (text,) = re.findall(r'<pre tabindex="0">(.*?)</pre>', page.text, re.DOTALL)
    assert len(conn.execute(html.unescape(text).encode()).fetchall()) == 1
    found = await web.get(f"{path}/options", params={"column": column, "q": "Two"})
    assert found.json() == [{"value": "2", "label": "Two"}]
    refused = await web.get(path, params={"kind.eq": "z"})
    assert "invalid input value for enum" in refused.text
    saved = await web.post(f"{path}/views", data={"token": token(page), "name": "v", f"{column}.eq": "2"})
    assert saved.status_code == 303
    asked = await web.get(f"{path}/bulk/cancel", params={f"{column}.eq": "2"})
    form = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', asked.text))
    begun = await web.post(f"{path}/bulk/cancel", data={html.unescape(name): value for name, value in form.items()})
    await until_over(web, await web.get(BASE + begun.headers["location"]))
    query = psycopg.sql.SQL("SELECT {column} FROM {table} WHERE status = 'cancelled'").format(**names)
    assert conn.execute(query).fetchall() == [(2,)]
    made = await web.post(f"{path}/new", data={"token": token(page), f"c.{column}": "2", "c.kind": "y"})
    assert made.status_code == 303


async def test_jobs_of_a_node_are_found_by_its_host(web: httpx.AsyncClient, conn: psycopg.Connection) -> None:
    node = "6a7cfcf4-0000-4000-8000-000000000001"
    conn.execute(
        "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)"
        " VALUES (%s, 'worker-7', 42, '0', '{*}', '{}', now(), 1)",
        [node],
    )
    conn.execute("UPDATE mail_jobs SET status = 'running', locked_at = now(), locked_by = %s WHERE id = 4", [node])
    page = await web.get("/mail_jobs?add=locked_by")
    assert f'<option value="{node}">worker-7:42</option>' in page.text
    assert await ids(web, locked_by__eq=node) == [4]


async def test_a_viewer_uses_views_and_saves_none(database_url: str, conn: psycopg.Connection) -> None:
    run(conn, TABLES)
    conn.execute(
        "INSERT INTO cluster.views (job_table, name, query, who) VALUES ('mail_jobs', 'v', 'status=retry', 'ann')"
    )
    role = "operator"
    async with browsing(database_url, lambda _: User("eve", role)) as web:  # type: ignore[arg-type]
        stolen = token(await web.get("/mail_jobs"))
        role = "viewer"
        page = await web.get("/mail_jobs?status=retry")
        assert (">v</a>" in page.text, 'method="post"' in page.text) == (True, False)
        for sent in ({"name": "w", "status": "failed"}, {"name": "v", "do": "delete"}):
            assert (await web.post("/mail_jobs/views", data={"token": stolen} | sent)).status_code == 403
    assert run(conn, "SELECT name FROM cluster.views") == [("v",)]
