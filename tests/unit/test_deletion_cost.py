"""A node tells Kubernetes what its pod runs, over HTTPS to a server that a test can see into."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster import events
from cluster.coordinator import deletion_cost as module
from cluster.coordinator.deletion_cost import INTERVAL, RETRY, RETRY_REFUSED, DeletionCost, deletion_cost
from cluster.settings import Pod, load_settings

pytestmark = pytest.mark.needs("openssl")


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: str


class ApiServer(ThreadingHTTPServer):
    """status: of the next answers."""

    status = 200

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def costs(self) -> list[str]:
        found = [json.loads(request.body)["metadata"]["annotations"] for request in self.requests]
        return [annotations["controller.kubernetes.io/pod-deletion-cost"] for annotations in found]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of a test."""


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_PATCH(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.append(Request(self.command, self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not to stderr."""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token, and a certificate of 127.0.0.1 that is its own authority."""
    folder = tmp_path_factory.mktemp("account")
    (folder / "token").write_text("s3cret\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "ca.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def server(account: Path) -> Iterator[ApiServer]:
    server = ApiServer(account)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(events, "deletion_cost_failed", lambda pod, error: told.append(f"{pod}: {error}"))
    return told


class Node:
    """What runs, and how it is told."""

    def __init__(self, server: ApiServer, account: Path) -> None:
        self.running = 0
        self.cost = DeletionCost(
            Pod("shop-7f9c", "shop", "127.0.0.1", server.server_port), lambda: self.running, account
        )

    async def runs(self, jobs: int) -> float:
        self.running = jobs
        return await self.cost.tick()


async def test_the_request_is_the_one_that_kubernetes_takes(server: ApiServer, account: Path) -> None:
    assert await Node(server, account).runs(12) == INTERVAL
    (request,) = server.requests
    assert (request.method, request.path) == ("PATCH", "/api/v1/namespaces/shop/pods/shop-7f9c")
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.headers["Content-Type"] == "application/merge-patch+json"
    assert json.loads(request.body) == {
        "metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "12"}}
    }


async def test_only_what_tells_pods_apart_is_told(server: ApiServer, account: Path) -> None:
    node = Node(server, account)
    for jobs in (0, 0, 1, 1, 0, 12, 13, 9, 16, 17, 11, 10):
        assert await node.runs(jobs) == INTERVAL
    assert server.costs == ["0", "1", "0", "12", "17", "11"]


async def test_a_refusal_is_said_once_and_tried_again_rarely(
    server: ApiServer, account: Path, failures: list[str]
) -> None:
    node = Node(server, account)
    server.status = 403
    assert [await node.runs(jobs) for jobs in (3, 3)] == [RETRY_REFUSED] * 2
    assert failures == ["shop-7f9c: 403 Forbidden"]
    server.status = 200
    assert await node.runs(3) == INTERVAL
    server.status = 403
    assert await node.runs(30) == RETRY_REFUSED
    assert len(failures) == 2
    assert server.costs == ["3", "3", "3", "30"]


async def test_an_api_server_that_is_away_costs_the_node_nothing_but_a_line(
    server: ApiServer, account: Path, failures: list[str], tmp_path: Path
) -> None:
    pod = Pod("p", "n", "127.0.0.1", 1)
    assert await DeletionCost(pod, lambda: 3, account).tick() == RETRY
    empty = Node(server, tmp_path)
    assert await empty.runs(3) == RETRY
    (tmp_path / "token").write_bytes(b"\xff")
    assert await empty.runs(3) == RETRY
    assert len(failures) == 2
    assert server.requests == []


async def test_the_token_goes_to_no_server_that_the_authority_does_not_know(
    server: ApiServer, account: Path, failures: list[str]
) -> None:
    node = Node(server, account)
    node.cost._pod = Pod("p", "n", "localhost", server.server_port)  # the certificate is for 127.0.0.1
    assert await node.runs(3) == RETRY
    assert "certificate verify failed" in failures[0]
    assert server.requests == []


VARIABLES = {
    "POD_NAME": "shop-7f9c", "POD_NAMESPACE": "shop", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443",
}  # fmt: skip


def test_a_pod_with_a_token_is_all_that_it_takes(account: Path) -> None:
    pod = load_settings(VARIABLES).pod
    assert pod == Pod("shop-7f9c", "shop", "10.0.0.1", 443)
    assert deletion_cost(pod, lambda: 0, account) is not None


@pytest.mark.parametrize("missing", VARIABLES)
def test_without_one_of_the_variables_there_is_nothing_to_do(account: Path, missing: str) -> None:
    pod = load_settings({**VARIABLES, missing: ""}).pod
    assert pod is None
    assert deletion_cost(pod, lambda: 0, account) is None


def test_without_a_token_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert deletion_cost(load_settings(VARIABLES).pod, lambda: 0, tmp_path) is None
    assert Path("/var/run/secrets/kubernetes.io/serviceaccount") == module.ACCOUNT
