"""/livez, /readyz and /metrics of a real node."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cluster.coordinator.http import Health, serve
from cluster.errors import SettingsError
from cluster.migration import migrate_jobs
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, job_classes, running_node, wait_for, wait_until, write_jobs
from tests.support.postgres import RunServer

GATE = 7
"""Advisory lock that GatedJob waits for."""
SOURCE = f"""
import os, time
import psycopg
from cluster import Fail, Job

class GoodJob(Job):
    queue = "mail"
    async def perform(self): ...

class BadJob(Job):
    async def perform(self):
        return Fail("no")

class CrashingJob(Job):
    max_attempts = 1
    def perform(self):
        os._exit(1)

class GatedJob(Job):
    async def perform(self):
        async with await psycopg.AsyncConnection.connect(os.environ["CLUSTER_DATABASE_URL"]) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock_shared({GATE})")
"""
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(scope="module")
def node(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that has performed three good jobs, a bad one and one that crashed."""
    with (
        run_server.database(run_server.template()) as url,
        running_node(url, tmp_path_factory.mktemp("app"), SOURCE, processes=1, concurrency=3) as shared,
    ):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("INSERT INTO good_jobs (queue) SELECT 'mail' FROM generate_series(1, 3)")
            connection.execute("INSERT INTO bad_jobs DEFAULT VALUES")
            wait_for(connection, "SELECT count(*) = 3 FROM good_jobs WHERE status = 'succeeded'")
            wait_for(connection, "SELECT count(*) = 1 FROM bad_jobs WHERE status = 'failed'")
            connection.execute("INSERT INTO crashing_jobs DEFAULT VALUES")
            wait_for(connection, "SELECT count(*) = 1 FROM crashing_jobs WHERE status = 'failed'")
        shared.wait_ready()
        yield shared


def get(node: NodeProcess, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Status, content type and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{node.http_port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def families(node: NodeProcess) -> dict[str, Metric]:
    return {metric.name: metric for metric in parse_text(get(node, "/metrics")[2])}


def sample(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    """The value of the one sample with these labels."""
    values = [
        found.value
        for metric in metrics.values()
        for found in metric.samples
        if found.name == name and found.labels == labels
    ]
    assert len(values) == 1, f"{name} {labels}: {values}"
    return values[0]


def test_a_node_that_works_is_alive_and_ready(node: NodeProcess) -> None:
    for path in ("/livez", "/readyz", "/livez?verbose=1"):
        status, content_type, body = get(node, path)
        assert (status, content_type.split(";")[0], body.count("\n")) == (200, "text/plain", 1), path


@pytest.mark.parametrize("path", ["/", "/metrics/", "/livezz", "/favicon.ico"])
def test_other_pages_are_404_and_say_what_there_is(path: str, node: NodeProcess) -> None:
    status, content_type, body = get(node, path)
    assert (status, content_type.split(";")[0]) == (404, "text/plain")
    assert body == "/livez, /readyz or /metrics\n"


def test_counters_carry_type_queue_and_outcome(node: NodeProcess) -> None:
    metrics = families(node)
    assert sample(metrics, "cluster_jobs_claimed_total", job_type="GoodJob", queue="mail") == 3
    finished = "cluster_jobs_finished_total"
    assert sample(metrics, finished, job_type="GoodJob", queue="mail", outcome="succeeded") == 3
    assert sample(metrics, finished, job_type="BadJob", queue="default", outcome="failed") == 1
    assert sample(metrics, finished, job_type="CrashingJob", queue="default", outcome="crashed") == 1
    assert sample(metrics, "cluster_worker_exits_total", reason="crashed") == 1


def test_histograms_cover_their_range(node: NodeProcess) -> None:
    metrics = families(node)
    wait, run = "cluster_job_wait_seconds", "cluster_job_run_seconds"
    assert sample(metrics, f"{wait}_count", job_type="GoodJob", queue="mail") == 3
    assert sample(metrics, f"{run}_count", job_type="GoodJob", queue="mail", outcome="succeeded") == 3
    assert 0 <= sample(metrics, f"{run}_sum", job_type="GoodJob", queue="mail", outcome="succeeded") < 5
    for name in ("cluster_claim_seconds", "cluster_finish_seconds", "cluster_claim_batch_jobs"):
        assert sample(metrics, f"{name}_count") > 0, name
    assert bounds(metrics, run) == (0.001, 3600)
    assert bounds(metrics, wait) == (0.001, 3600)
    assert bounds(metrics, "cluster_claim_seconds") == (0.00025, 10)
    assert bounds(metrics, "cluster_finish_seconds") == (0.00025, 10)
    assert sample(metrics, "cluster_claim_batch_jobs_sum") == 5


def bounds(metrics: dict[str, Metric], name: str) -> tuple[float, float]:
    """The first and the last finite bucket."""
    finite = {
        float(found.labels["le"])
        for found in metrics[name].samples
        if found.name.endswith("_bucket") and found.labels["le"] != "+Inf"
    }
    return min(finite), max(finite)


def test_gauges_tell_of_slots_version_and_heartbeat(node: NodeProcess) -> None:
    # A job has ended its process just now: until another is up there are no slots.
    wait_until(lambda: sample(families(node), "cluster_slots", state="free") == 3, "the worker is replaced")
    metrics = families(node)
    assert sample(metrics, "cluster_slots", state="busy") == 0
    assert sample(metrics, "cluster_build_info", version=version("jobcluster")) == 1
    assert 0 <= sample(metrics, "cluster_heartbeat_age_seconds") < 30


def test_no_label_is_one_that_prometheus_sets_itself(node: NodeProcess) -> None:
    labels = {
        label
        for metric in families(node).values()
        if metric.name.startswith("cluster_")
        for found in metric.samples
        for label in found.labels
    }
    assert labels.isdisjoint({"job", "instance", "pod", "namespace"})


def test_metrics_speak_openmetrics_where_that_is_asked_for(node: NodeProcess) -> None:
    status, content_type, body = get(node, "/metrics", accept=OPENMETRICS)
    assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert "cluster_jobs_finished" in {metric.name for metric in parse_openmetrics(body)}  # type: ignore[no-untyped-call]  # the library has none


def test_busy_slots_are_counted_and_a_draining_node_is_alive_but_not_ready(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1, concurrency=3)
    conn.execute("SELECT pg_advisory_lock(%s)", [GATE])
    conn.execute("INSERT INTO gated_jobs SELECT FROM generate_series(1, 2)")
    wait_for(conn, "SELECT count(*) = 2 FROM gated_jobs WHERE status = 'running'")
    metrics = families(node)
    assert (sample(metrics, "cluster_slots", state="busy"), sample(metrics, "cluster_slots", state="free")) == (2, 1)
    node.terminate()
    wait_until(lambda: node.get("/readyz") == 503, "the draining node is not ready")
    assert node.get("/livez") == 200
    conn.execute("SELECT pg_advisory_unlock(%s)", [GATE])
    assert node.wait_exit() == 0


def test_a_starting_node_is_alive_but_not_ready(conn: psycopg.Connection, database_url: str, tmp_path: Path) -> None:
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))
    node = NodeProcess(database_url, tmp_path)
    with psycopg.connect(database_url) as locking:  # the node can't register, so it has no lease
        locking.execute("LOCK TABLE cluster.nodes IN EXCLUSIVE MODE")
        try:
            node.start()
            wait_until(lambda: node.get("/readyz") == 503, "the starting node answers")
            assert node.get("/livez") == 200
            locking.rollback()
            node.wait_ready()
        finally:
            node.clean_up()


def test_port_0_switches_the_pages_off(conn: psycopg.Connection, database_url: str, tmp_path: Path) -> None:
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))
    node = NodeProcess(database_url, tmp_path, http_port=0)
    node.start()
    try:
        conn.execute("INSERT INTO good_jobs DEFAULT VALUES")
        wait_for(conn, "SELECT count(*) = 1 FROM good_jobs WHERE status = 'succeeded'")
        assert node.get("/livez") == 0
        assert node.stop() == 0
    finally:
        node.clean_up()


def asked(node: NodeProcess, request: bytes) -> bytes:
    """What comes back on a connection of its own, until it is closed."""
    with socket.create_connection(("127.0.0.1", node.http_port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"HEAD /livez HTTP/1.0\r\n\r\n", 200),
        (b"POST /livez HTTP/1.1\r\n\r\n", 405),
        (b"GET /livez HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01 what is this\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", 400),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_whatever_is_asked_is_answered_or_refused(request_: bytes, status: int, node: NodeProcess) -> None:
    answer = asked(node, request_)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.endswith(b"\r\n\r\n") == request_.startswith(b"HEAD")


def test_slow_clients_keep_nobody_from_an_answer(node: NodeProcess) -> None:
    with ExitStack() as slow:
        for _ in range(200):
            client = slow.enter_context(socket.create_connection(("127.0.0.1", node.http_port), timeout=10))
            client.sendall(b"GET /livez HT")
        begun = time.monotonic()
        assert node.get("/livez") == 200
        assert time.monotonic() - begun < 4
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b"", "the last of them is closed in the end"


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("host", ["socket", *(["::", "::1"] if has_ipv6() else [])])
def test_the_pages_speak_ipv6_and_through_a_unix_socket(host: str, tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    health = Health()
    free = socket.create_server(("", 0))
    port = free.getsockname()[1]
    free.close()
    for _ in range(2):  # the second one finds the file of the first
        server = serve(path if host == "socket" else host, port, health)
        assert server is not None
        places: list[tuple[socket.AddressFamily, str | tuple[str, int]]] = {
            "::": [(socket.AF_INET6, ("::1", port)), (socket.AF_INET, ("127.0.0.1", port))],
            "::1": [(socket.AF_INET6, ("::1", port))],
            "socket": [(socket.AF_UNIX, path)],
        }[host]  # type: ignore[assignment]
        for family, address in places:
            with socket.socket(family) as client:
                client.settimeout(10)
                client.connect(address)
                client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        server.close()


def test_an_address_that_is_taken_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"can't listen on 127\.0\.0\.1:{port} .*choose another"):
            serve("127.0.0.1", port, Health())
    path = str(tmp_path / "http.sock")
    server = serve(path, 1, Health())
    assert server is not None
    with pytest.raises(SettingsError, match="another process listens there"):
        serve(path, 1, Health())
    server.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(SettingsError, match="Address already in use"):
        serve(str(file), 1, Health())
    assert file.read_text() == "data"
