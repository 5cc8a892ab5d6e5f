"""Every route of the dashboard, whatever is asked of it: an answer in its own words, with all headers, and never a fault of ours.

Routes come from the application, so that a new page is tried from its first day.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from cluster.dashboard import NoAuth, dashboard
from cluster.dashboard.guard import HEADERS
from tests.support.rows import run

TABLES = """
CREATE TABLE customers (id integer PRIMARY KEY);
INSERT INTO customers VALUES (1);
CREATE TYPE level AS ENUM ('low', 'high');
SELECT cluster.create_job_table('mail_jobs');
ALTER TABLE mail_jobs ADD COLUMN label text, ADD COLUMN customer_id integer REFERENCES customers, ADD COLUMN level level,
    ADD COLUMN options jsonb, ADD COLUMN at timestamptz, ADD COLUMN "we""ird <b>%s" text, ADD COLUMN numbers integer[],
    ADD COLUMN amount numeric, ADD COLUMN raw bytea, ADD COLUMN token uuid, ADD COLUMN spell interval, ADD COLUMN fine boolean;
INSERT INTO mail_jobs (label, options) SELECT '<script>alert(1)</script>', '{"a": 1}' FROM generate_series(1, 30);
UPDATE mail_jobs SET status = 'failed', finished_at = now(), last_error = 'ValueError: no customer ' || id WHERE id % 2 = 0;
INSERT INTO cluster.schedules (name, job_table, every) VALUES ('nightly', 'mail_jobs', '1 day');
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots)
VALUES ('00000000-0000-0000-0000-000000000001', 'host', 1, '1', '{*}', '{MailJob}', now(), 4);
"""
HOSTILE = [
    "", " ", "0", "1", "-1", "1e9", "9223372036854775807", "9223372036854775808", "9" * 400, "1.5", "null", "NaN", "infinity",
    "mail_jobs", "public.mail_jobs", "pg_class", "cluster.nodes", "oid-1", "oid-99999999999999999999", "..", ".", "%00", "\x00",
    "\ufeff",
    "'; DROP TABLE mail_jobs; --", "' OR 1=1 --", "\\", '"', "%s", "%(id)s", "%", "{table}", "{{ 7777 * 77777 }}", "{% raw %}",
    "<script>alert(1)</script>", "javascript:alert(1)", "//evil.example", "http://evil.example",
    "a\r\nset-cookie: b=c", "\u202e\u0000",
    "2025-01-01", "2025-13-45", "99999-01-01", "infinity", "0001-01-01T00:00:00+99:99", "00000000-0000-0000-0000-000000000001",
    "failed", "nonsense", "*/5 * * * *", "* * * * * * *", "é" * 300, "🦊", "a" * 9000, "low", "{1,2}", "{", '{"a":', "[" * 2000,
]  # fmt: skip
RAW = [
    b"\xff\xfe",
    b"%ff%fe%fd",
    b"\x80=\x81",
    b"&&&&",
    b"=",
    b"%zz",
    b"a=" * 3000,
    b"\x00" * 40,
    b"token",
    b"{",
    b"[" * 5000,
]
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "NONSENSE", "get"]
NAMES = [
    "id", "status", "queue", "priority", "error", "since", "until", "before", "after", "size", "from", "said", "reason", "do",
    "limit", "total",
    "token", "action", "name", "cron", "every", "time_zone", "view", "sort", "q", "most", "c.label", "c.at", "c.options", "c.level",
    "c.numbers",
    "c.amount", "c.raw", "c.token", "c.spell", "c.fine", "c.customer_id", 'c.we"ird <b>%s', "c.run_at", "c.priority",
    "c.nothing", "c.",
    "where.label", "label", "attempts", "node", "column", "operator", "value", "revision", "dry_run", "confirm", "table",
]  # fmt: skip
SENT_HEADERS = {
    "accept": ["application/json", "text/html", "*/*", "nonsense;q=zzz", "application/json, text/html", ""],
    "content-type": ["application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=x", "x" * 300],
    "sec-fetch-site": ["same-origin", "cross-site", "none", "nonsense"],
    "x-forwarded-prefix": ["/ops", "//evil.example", '"><script>', "a" * 5000],
    "x-forwarded-for": ["1.2.3.4", "nonsense", "," * 500, "::1"],
    "range": ["bytes=0-1", "bytes=99999-", "nonsense", "bytes=5-1,9-2"],
    "if-modified-since": ["nonsense", "Thu, 01 Jan 1970 00:00:00 GMT"], "if-none-match": ["*", '"x"'],
    "accept-language": ["ar", "nonsense"], "cookie": ["a=b; c", "tz=<script>; theme=dark", "\xff"],
    "authorization": ["Basic %%%", "Bearer x"],
    "origin": ["null", "http://evil.example"], "last-event-id": ["-1", "x"], "x-requested-with": ["fetch"],
    "content-length": ["0"], "transfer-encoding": ["nonsense"], "host": ["127.0.0.1", "127.0.0.1:99999", "localhost"],
}  # fmt: skip
FAULTS = re.compile(r"Traceback \(most recent|File \"/|psycopg\.|jinja2\.|starlette\.|\b" + str(7777 * 77777))
LIVE = {"/live"}
"""Routes whose answer has no end; they are asked for its beginning elsewhere."""


def routes(app: Starlette) -> list[tuple[str, str]]:
    """Method and path of each."""
    found = []
    for route in app.routes:
        if isinstance(route, Route) and route.path not in LIVE:
            found += [(method, route.path) for method in sorted(route.methods or ()) if method != "HEAD"]
        elif isinstance(route, Mount):
            found.append(("GET", f"{route.path}/{{file}}"))
    return found


class Web:
    """The dashboard and one event loop for all that is asked of it."""

    def __init__(self, url: str) -> None:
        self.app = dashboard(NoAuth(open=True), database_url=url, proxies="127.0.0.1")
        self.routes = routes(self.app)
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **options))

    def token(self) -> str:
        return str(self.ask("GET", "/audit", headers={"accept": "application/json"}).json()["token"])

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


@pytest.fixture
def web(database_url: str, conn: psycopg.Connection) -> Iterator[Web]:
    run(conn, TABLES)
    run(conn, f"ALTER DATABASE {conn.info.dbname} SET statement_timeout = '10s'")
    web = Web(database_url)
    yield web
    web.close()


def check(response: httpx.Response, asked: object) -> None:
    assert response.status_code < 500, (asked, response.status_code, response.text[:500])
    for name, value in HEADERS.items():
        assert response.headers.get(name) == value, (asked, name)
    assert "no-store" in response.headers["cache-control"], asked
    kind = response.headers.get("content-type", "")
    if "javascript" not in kind and "css" not in kind:
        assert not FAULTS.search(response.text), (asked, response.text[:500])
    if "html" in kind:
        assert "<script>alert" not in response.text, asked
    assert "set-cookie" not in response.headers, asked
    location = response.headers.get("location", "/")
    assert location.startswith(("/", "http://127.0.0.1", "http://localhost")), (asked, location)
    assert not location.startswith("//"), (asked, location)
    if response.request.method == "GET" and "application/json" in kind:
        response.json()


def filled(path: str, values: Iterator[str]) -> str:
    """The path with values for its parameters, as they stand in an address."""
    return re.sub(r"\{(\w+)(:\w+)?\}", lambda _: quote(next(values), safe="%") or "x", path)


def test_there_are_routes(web: Web) -> None:
    assert {("GET", "/"), ("POST", "/{table}/{id}/{action}"), ("GET", "/static/{file}")} <= set(web.routes)


def sweep(web: Web, part: int) -> None:
    """Each route gets one in so many of the values, in its path, a query or a form, and of the methods, bodies and headers."""
    token = web.token()
    for turn, (method, path) in enumerate(web.routes):
        usual = filled(path, iter(["mail_jobs", "1", "retry", "x"]))
        for number, value in enumerate(HOSTILE[turn % part :: part], turn):
            places = (["mail_jobs", "1", value], ["mail_jobs", value, value], [value] * 9)[number % 3]
            address, fields = filled(path, iter(places)), {NAMES[(7 * turn + number) % len(NAMES)]: value}
            given = {"params": fields} if method == "GET" else {"data": fields | {"token": token}}
            check(web.ask(method, address, **given), (method, address, fields))
        for strange in METHODS[turn % part :: part]:
            if (strange, path) not in web.routes:
                check(web.ask(strange, usual), (strange, usual))
        for number, body in enumerate(RAW[turn % part :: part], turn):
            if method == "POST":
                check(web.ask("POST", usual, content=body + f"&token={token}".encode()), (usual, body[:50]))
            else:
                check(web.ask("GET", f"{usual}?" + quote(body[:200], safe="%&=")), (usual, body[:50]))
            headers = {name: values[number % len(values)].encode("latin-1") for name, values in SENT_HEADERS.items()}
            check(web.ask(method, usual, headers=headers), (method, usual, headers))


def test_every_route_answers_calmly_to_hostile_values_methods_and_headers(web: Web) -> None:
    sweep(web, 7)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_every_route_answers_calmly_to_every_hostile_value_method_and_header(web: Web) -> None:
    sweep(web, 1)


def test_no_route_is_open_to_strangers_or_to_other_sites(web: Web, database_url: str) -> None:
    closed = dashboard(lambda _: None, database_url=database_url)

    async def ask(app: Starlette, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=headers)

    for method, path in [*web.routes, ("GET", "/live"), ("GET", "/nothing/of/the/kind")]:
        address = filled(path, iter(["mail_jobs", "1", "retry", "x"]))
        response = asyncio.run(ask(closed, method, address, {}))
        assert response.status_code == 401, (method, address)
        check(response, (method, address))
        if method == "POST":
            refused = web.ask(method, address, data={"token": web.token()}, headers={"sec-fetch-site": "cross-site"})
            assert refused.status_code == 403, address
            check(refused, address)


class Walk:
    """Any request, made up of the routes and of what is hostile."""

    def __init__(self, web: Web) -> None:
        text = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
        self.requests = st.tuples(
            st.sampled_from(web.routes),
            st.lists(
                st.one_of(st.just("mail_jobs"), st.sampled_from(["1", "2", "retry", "delete", "new"]), text),
                min_size=9,
                max_size=9,
            ),
            st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=9)), text, max_size=5),
            st.dictionaries(st.sampled_from(sorted(SENT_HEADERS)), st.integers(0, 9), max_size=4),
            st.booleans(),
        )

    def go(self, web: Web, examples: int) -> None:
        token = web.token()

        @settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        )  # fmt: skip
        @given(self.requests)
        def ask(request: tuple[tuple[str, str], list[str], dict[str, str], dict[str, int], bool]) -> None:
            (method, path), values, fields, chosen, is_signed = request
            address = filled(path, iter(each.encode("utf-8", "replace").decode() for each in values))
            headers = {
                name: SENT_HEADERS[name][n % len(SENT_HEADERS[name])].encode("latin-1") for name, n in chosen.items()
            }
            given = {"params" if method == "GET" else "data": fields | ({"token": token} if is_signed else {})}
            check(web.ask(method, address, headers=headers, **given), (method, address, fields, headers))

        ask()


def test_any_request_is_answered_calmly(web: Web) -> None:
    Walk(web).go(web, 40)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_any_of_thousands_of_requests_is_answered_calmly(web: Web) -> None:
    Walk(web).go(web, 8000)
