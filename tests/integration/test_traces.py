"""A trace goes through the queue: from the span that enqueues to that of the attempt, and to an exemplar of the metrics."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from cluster import Job, enqueueing
from cluster.migration import migrate_jobs
from cluster.tracing import current_traceparent
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for, wait_until

SOURCE = """
from pathlib import Path
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from cluster import Fail, Job

class ToFile(SpanExporter):
    def export(self, spans):
        with (Path(__file__).parents[1] / "spans").open("a") as file:
            file.writelines(span.to_json(indent=None) + "\\n" for span in spans)
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)

class TracedJob(Job):
    size: int
    max_attempts = 1

    async def perform(self):
        with trace.get_tracer("app").start_as_current_span("inside"):
            if self.size > 5:
                raise ValueError("too large")

class TracedPlainJob(Job):
    size: int

    def perform(self):
        with trace.get_tracer("app").start_as_current_span("inside"):
            pass

class UntracedJob(Job):
    async def perform(self): ...
"""
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


class TracedJob(Job):
    size: int

    async def perform(self) -> None: ...


@pytest.fixture
def node(conn: psycopg.Connection, run_node: RunNode) -> NodeProcess:
    """Of which two tables have the column."""
    with conn.transaction():
        migrate_jobs(conn, [TracedJob])
        conn.execute("ALTER TABLE traced_jobs ADD COLUMN traceparent text")
    node = run_node(SOURCE, processes=1)
    (node.app_dir / "spans").touch()
    return node


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Iterator[trace.Tracer]:
    monkeypatch.setattr(enqueueing, "_takes_traces", {})
    provider = TracerProvider()
    yield provider.get_tracer("test")
    provider.shutdown()


def spans(node: NodeProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (node.app_dir / "spans").read_text().splitlines()]


def span(node: NodeProcess, name: str) -> dict[str, Any]:
    wait_until(lambda: any(found["name"] == name for found in spans(node)), f"span {name} has ended")
    return next(found for found in spans(node) if found["name"] == name)


def test_the_span_of_an_attempt_is_a_child_of_what_the_row_says(conn: psycopg.Connection, node: NodeProcess) -> None:
    conn.execute("INSERT INTO traced_jobs (size, queue, traceparent) VALUES (1, 'mail', %s)", [TRACEPARENT])
    found, inside = span(node, "process traced_jobs"), span(node, "inside")
    assert (found["context"]["trace_id"], found["parent_id"]) == (f"0x{TRACE}", f"0x{SPAN}")
    assert (inside["context"]["trace_id"], inside["parent_id"]) == (f"0x{TRACE}", found["context"]["span_id"])
    assert found["kind"] == "SpanKind.CONSUMER"
    assert found["attributes"] == {
        "messaging.system": "jobcluster",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "traced_jobs",
        "messaging.message.id": "1",
        "jobcluster.job_type": "TracedJob",
        "jobcluster.queue": "mail",
        "jobcluster.attempt": 1,
        "jobcluster.outcome": "succeeded",
    }


def test_a_failed_attempt_has_its_error_in_its_span(conn: psycopg.Connection, node: NodeProcess) -> None:
    conn.execute("INSERT INTO traced_jobs (size, traceparent) VALUES (9, %s)", [TRACEPARENT])
    found = span(node, "process traced_jobs")
    assert (found["status"]["status_code"], found["attributes"]["error.type"]) == ("ERROR", "ValueError")
    assert found["events"][0]["attributes"]["exception.message"] == "too large"


def test_what_is_no_traceparent_begins_a_trace_of_its_own(conn: psycopg.Connection, node: NodeProcess) -> None:
    texts = [None, "", "00-" + "0" * 32 + f"-{SPAN}-01", "x" * 100_000, f"ff-{TRACE}-{SPAN}-01"]
    conn.execute("INSERT INTO traced_jobs (size, traceparent) SELECT 1, * FROM unnest(%s::text[])", [texts])
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM traced_jobs")
    found = [one for one in spans(node) if one["name"] == "process traced_jobs"]
    assert [one["parent_id"] for one in found] == [None] * 5
    assert len({one["context"]["trace_id"] for one in found} - {f"0x{TRACE}"}) == 5


def test_jobs_without_the_column_have_spans_too(conn: psycopg.Connection, node: NodeProcess) -> None:
    conn.execute("INSERT INTO untraced_jobs DEFAULT VALUES")
    conn.execute("INSERT INTO traced_plain_jobs (size) VALUES (1)")
    assert span(node, "process untraced_jobs")["parent_id"] is None
    assert span(node, "inside")["parent_id"] == span(node, "process traced_plain_jobs")["context"]["span_id"]


def test_whoever_asks_for_openmetrics_gets_the_trace_of_an_attempt(conn: psycopg.Connection, node: NodeProcess) -> None:
    """In the bucket that counts it, however close to a bound: it has the time of the attempt itself."""
    conn.execute("INSERT INTO traced_jobs (size, traceparent) VALUES (1, %s)", [TRACEPARENT])
    address = f"http://127.0.0.1:{node.http_port}/metrics"
    request = urllib.request.Request(address, headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    def page() -> str:
        with urllib.request.urlopen(request) as response:
            return str(response.read().decode())

    series = r'cluster_job_run_seconds_{}{{[^}}]*job_type="TracedJob"[^}}]*}} '
    pattern = series.format("bucket") + rf'1.0 # {{trace_id="{TRACE}"}} (\S+) '
    wait_until(lambda: re.search(pattern, page()) is not None, "the exemplar is there", seen=page)
    assert re.findall(pattern, page()) == re.findall(series.format("sum") + r"(\S+)", page())


def test_enqueueing_writes_the_current_span(conn: psycopg.Connection, node: NodeProcess, tracer: trace.Tracer) -> None:
    with tracer.start_as_current_span("request"):
        sent = current_traceparent()
        TracedJob(size=1).perform_later(conn)
        TracedJob.perform_many(conn, [TracedJob(size=2), TracedJob(size=3)])
    TracedJob(size=4).perform_later(conn)
    rows = conn.execute("SELECT size, traceparent FROM traced_jobs ORDER BY size").fetchall()
    assert rows == [(1, sent), (2, sent), (3, sent), (4, None)]
    assert sent is not None


def test_async_enqueueing_does_too(node: NodeProcess, conn: psycopg.Connection, tracer: trace.Tracer) -> None:
    async def send() -> str | None:
        async with await psycopg.AsyncConnection.connect(node.database_url, autocommit=True) as connection:
            with tracer.start_as_current_span("request"):
                await TracedJob(size=1).perform_later(connection)
                await TracedJob.perform_many(connection, [TracedJob(size=2)])
                return current_traceparent()

    sent = asyncio.run(send())
    assert conn.execute("SELECT traceparent FROM traced_jobs").fetchall() == [(sent,), (sent,)]


def test_a_table_without_the_column_is_enqueued_into_as_ever(conn: psycopg.Connection, tracer: trace.Tracer) -> None:
    with conn.transaction():
        migrate_jobs(conn, [TracedJob])
    with tracer.start_as_current_span("request"):
        TracedJob(size=1).perform_later(conn)
        TracedJob.perform_many(conn, [TracedJob(size=2)])
    assert conn.execute("SELECT count(*) FROM traced_jobs").fetchone() == (2,)
