"""How long each page of the dashboard takes beside a large table, and what 50 people who watch cost Postgres.

The pages are found as people find them: from the overview along the links, one page for each route and kind of query, and some
filters that no link has. So a new page is measured from its first day.
"""

from __future__ import annotations

import html
import http.client
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg import Connection, sql
from starlette.routing import Match, Route

from bench import processes
from bench.harness import Bench, table_of
from bench.jobs.counted import CountedJob
from bench.jobs.idle_types import IDLE_CLASSES
from bench.jobs.noop import NoopJob
from bench.results import REPOSITORY, Results
from cluster.dashboard import NoAuth, dashboard
from cluster.migration import migrate_jobs, migrate_schema

ROWS = 10_000_000
SECONDS = 20.0
VIEWERS = (1, 50)
TOLD = 12.0
"""Seconds after which an idle session of Postgres has told its statistics: those of the pages are not the viewers'."""
WARM_UP, TIMES = 2, 20
MOST_PAGES = 80
BATCH = 1_000_000
FILL = """
INSERT INTO {table} (
    number, queue, priority, status, attempts_count, started_at, finished_at, locked_at, locked_by, run_at, last_error, created_at)
SELECT n, CASE n %% 3 WHEN 0 THEN 'default' ELSE 'q' || n %% 7 END, 1 + n %% 100, s.status::cluster.job_status,
       (s.status NOT IN ('not_started', 'scheduled'))::integer,
       CASE WHEN s.status NOT IN ('not_started', 'scheduled') THEN t.at END,
       CASE WHEN s.status IN ('succeeded', 'failed') THEN t.at END,
       CASE WHEN s.status = 'running' THEN now() END,
       CASE WHEN s.status = 'running' THEN (SELECT min(id::text)::uuid FROM cluster.nodes) END,
       CASE WHEN s.status IN ('scheduled', 'retry') THEN now() + n %% 1000 * interval '1 minute' ELSE t.at END,
       CASE WHEN s.status IN ('failed', 'retry') THEN
           CASE WHEN n %% 1100 < 1000 THEN 'ValueError: no customer ' || n ELSE 'OSError: disk ' || n || ' is full' END END, t.at
FROM generate_series(%(from)s::bigint, %(to)s::bigint) AS n,
     LATERAL (SELECT now() - (%(rows)s::bigint - n) * interval '10 milliseconds' AS at) AS t,
     LATERAL (SELECT CASE WHEN n > %(rows)s::bigint - 60 THEN 'running'
                          WHEN n > %(rows)s::bigint - 20000 AND n %% 2 = 0 THEN 'not_started'
                          WHEN n > %(rows)s::bigint - 20000 THEN 'scheduled'
                          WHEN n %% 5000 = 0 THEN 'retry' WHEN n %% 50 = 0 THEN 'failed' ELSE 'succeeded' END AS status) AS s
"""
"""As an application's table looks after a year: nearly all has succeeded, and of what failed nine in ten failed with one error."""
AROUND = """
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, running, code, started_at)
SELECT gen_random_uuid(), 'host-' || n, n, '1.' || n / 10, ARRAY['*'], (SELECT array_agg(name) FROM cluster.job_types),
       now() + interval '1 day', 64, 3, 'c' || n / 10, now() - (30 - n) * interval '1 minute' FROM generate_series(1, 20) AS n;
INSERT INTO cluster.minutes
SELECT date_trunc('minute', now()) - m * interval '1 minute', t.job_table, n.id, 300, 5, 100, ARRAY[0, 0, 5, 100, 150, 40, 5, 5]
FROM generate_series(0, 180) AS m, cluster.nodes AS n, cluster.job_types AS t;
INSERT INTO cluster.schedules (name, job_table, job_values, every, active)
SELECT 'schedule ' || n, t.job_table, '{"number": 1}', '1 day', false
FROM generate_series(1, 200) AS n, cluster.job_types AS t WHERE t.name = 'CountedJob';
INSERT INTO cluster.audit (who, via, action, target, count)
SELECT 'ann', 'dashboard', 'retry', 'jobs ' || n, 1 FROM generate_series(1, 10000) AS n;
"""
FAILURES = """
INSERT INTO cluster.failures (job_table, job_id, attempt, at, outcome, fingerprint, error)
SELECT {name}::regclass, id, 1, coalesce(finished_at, created_at), 'failed', md5(split_part(last_error, ':', 1)), last_error
FROM {table} WHERE last_error IS NOT NULL
"""
FILTERS = (
    "", "?status=failed", "?status=running", "?status=retry", "?status=scheduled", "?status=succeeded&status=cancelled",
    "?status=failed&error=no+customer", "?error=nothing+that+there+is", "?queue=q3", "?queue=nowhere", "?before=5000", "?id=4000",
    "?since=2000-01-01",
)  # fmt: skip
"""Of a list."""


class Page(NamedTuple):
    """kind: its route, and the query without what may be anything."""

    kind: str
    address: str


def run(bench: Bench, results: Results) -> None:
    """p95 of every page beside 10,000,000 rows, and what 1 and 50 viewers of the live overview cost."""
    rows = results.parameters["rows"] = bench.rows_or(ROWS)
    for _ in bench.rounds("dashboard", 1):
        with bench.other_database() as url, psycopg.connect(url, autocommit=True) as connection:
            migrate_schema(connection)
            migrate_jobs(connection, [CountedJob, NoopJob])
            _fill(connection, rows)
            with _serving(bench, url) as server:
                times = min(TIMES, bench.options.probes)
                for page in _pages(url, server, min(MOST_PAGES, 10 * times)):
                    _measure(results, server, page, times)
                time.sleep(TOLD)
                for viewers in VIEWERS:
                    _watch(bench, connection, results, server, viewers)
                migrate_jobs(connection, IDLE_CLASSES)
                _measure(results, server, Page(f"/, {2 + len(IDLE_CLASSES)} job types", f"{server.base}/"), times)


def _fill(connection: Connection, rows: int) -> None:
    table = sql.Identifier(table_of(CountedJob))
    connection.execute(AROUND)
    connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(table))
    fill = sql.SQL(FILL).format(table=table)
    for first in range(1, rows + 1, BATCH):
        connection.execute(fill, {"from": first, "to": min(rows, first + BATCH - 1), "rows": rows})
    connection.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(table))
    if connection.execute("SELECT to_regclass('cluster.failures')").fetchone() != (None,):
        name = sql.Literal(table_of(CountedJob))
        connection.execute(sql.SQL(FAILURES).format(name=name, table=table))
    connection.execute("VACUUM ANALYZE")


class Server:
    """A running `cluster dashboard`."""

    def __init__(self, pid: int, address: str) -> None:
        self.pid = pid
        parts = urlsplit(address)
        self.base = parts.path.rstrip("/")
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._connection = self.connect()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=60)

    def connect_anew(self) -> None:
        """With the next request. A connection that rests is closed by the server after some seconds."""
        self._connection.close()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text, on one connection that stays, as a browser's does."""
        self._connection.request("GET", path, headers={"accept": "text/html"})
        response = self._connection.getresponse()
        return response.status, response.read().decode()


@contextmanager
def _serving(bench: Bench, url: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "cluster", "dashboard", "--auth", "none", "--port", "0"]
    environment = bench.environment(url)
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            if not line.startswith("dashboard: "):
                raise RuntimeError(f"the dashboard did not start: {line}{process.stderr.read()}")
            server = Server(process.pid, line.split()[1])
            yield server
            server.connect_anew()
        finally:
            process.kill()


# --- pages ---


def _pages(url: str, server: Server, most: int) -> list[Page]:
    """Found along the links, none twice. A route with parameters that nothing leads to is not among them."""
    routes = [route for route in dashboard(NoAuth(), database_url=url).routes if isinstance(route, Route)]
    table = f"{server.base}/{table_of(CountedJob)}"
    plain = [route.path for route in routes if "{" not in route.path and "GET" in (route.methods or ())]
    left = deque([f"{server.base}{path}" for path in plain] + [f"{table}{chosen}" for chosen in FILTERS])
    found: dict[str, Page] = {}
    while left and len(found) < most:
        address = left.popleft()
        kind = _kind(routes, address.removeprefix(server.base))
        if kind is None or kind in found:
            continue
        status, text = server.get(address)
        if status == 404:  # it needs to be told of what
            continue
        found[kind] = Page(kind, address)
        links = [html.unescape(link) for link in re.findall(r'href="([^"#]+)"', text)]
        left += [link for link in links if link.startswith(f"{server.base}/")]
    return list(found.values())


def _kind(routes: list[Route], address: str) -> str | None:
    """None: it is no page, or one without an end."""
    parts = urlsplit(address)
    scope = {"type": "http", "method": "GET", "path": parts.path, "root_path": "", "headers": []}
    route = next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)
    if route is None or route.path == "/live":
        return None
    fields = {
        name
        if name in ("before", "after", "since", "until", "from", "id", "error", "queue", "said", "name", "table")
        else f"{name}={value}"
        for name, value in parse_qsl(parts.query)
    }
    if "nothing that there is" in address.replace("+", " ") or "nowhere" in address:
        fields.add("none match")
    return " ".join([route.path, *sorted(fields)])


def _measure(results: Results, server: Server, page: Page, count: int) -> None:
    times, size = [], 0
    server.connect_anew()
    for turn in range(WARM_UP + count):
        begun = time.perf_counter()
        status, text = server.get(page.address)
        took = (time.perf_counter() - begun) * 1000
        if status >= 500:
            raise RuntimeError(f"{page.address} answered {status}: {text[:500]}")
        size = len(text.encode())
        if turn >= WARM_UP:
            times.append(took)
    times.sort()
    results.add(page.kind, "p50", "ms", times[len(times) // 2])
    results.add(page.kind, "p95", "ms", times[min(len(times) - 1, round(0.95 * len(times)))])
    results.add(page.kind, "size", "kB", size / 1000)


# --- viewers ---


def _watch(bench: Bench, connection: Connection, results: Results, server: Server, viewers: int) -> None:
    """What Postgres does in a second while so many look at the overview, and what the dashboard's process does."""
    seconds = bench.seconds(SECONDS)
    variant = f"{viewers} viewer{'s' if viewers > 1 else ''}"
    with ExitStack() as stack:
        watching = [_viewer(stack, server) for _ in range(viewers)]
        _read(watching, 1.5)  # until all are served
        before = _transactions(connection), bench.cpu().postgres, processes.cpu_seconds(server.pid)
        begun = time.monotonic()
        events = _read(watching, seconds)
        took = time.monotonic() - begun
        after = _transactions(connection), bench.cpu().postgres, processes.cpu_seconds(server.pid)
    for measure, unit, one, other, scale in (
        ("transactions", "/s", before[0], after[0], 1.0),
        ("CPU of Postgres", "ms/s", before[1], after[1], 1000.0),
        ("CPU of the dashboard", "ms/s", before[2], after[2], 1000.0),
    ):
        if one is not None and other is not None:
            results.add(variant, measure, unit, (other - one) / took * scale)
    results.add(variant, "events to each", "/s", events / viewers / took)


def _viewer(stack: ExitStack, server: Server) -> socket.socket:
    connection = server.connect()
    connection.request("GET", f"{server.base}/live")
    assert connection.sock is not None
    stack.callback(connection.close)
    connection.sock.setblocking(False)
    return connection.sock


def _read(watching: list[socket.socket], seconds: float) -> int:
    """Reads whatever comes, as browsers do; returns the number of events, each of which ends with an empty line."""
    events, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        for viewer in watching:
            try:
                while received := viewer.recv(1 << 20):
                    events += received.count(b"\n\n")
            except BlockingIOError:
                continue
        time.sleep(0.05)
    return events


def _transactions(connection: Connection) -> float:
    """Of the database so far. What busy sessions have not told yet comes a second later, and is as much each time."""
    connection.execute("SELECT pg_stat_clear_snapshot()")
    row = connection.execute(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    return float(row[0])
