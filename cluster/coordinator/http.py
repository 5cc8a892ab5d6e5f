"""/livez, /readyz and /metrics of a node, answered by threads of their own: they must speak when the loop does not."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from cluster.errors import SettingsError

STALLED = 10.0
"""Seconds without a turn of the coordinator's loop after which it counts as dead."""


class Health:
    """What the probes tell. Written by the loop, read by the server's threads; single values, so no lock."""

    def __init__(self) -> None:
        self.turned_at = time.monotonic()
        self.ready = False

    @property
    def alive(self) -> bool:
        return time.monotonic() - self.turned_at < STALLED


class _Handler(BaseHTTPRequestHandler):
    health: Health

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._answer(self.health.alive, "alive", "the coordinator's loop does not turn")
        elif path == "/readyz":
            self._answer(self.health.ready, "ready", "starting, draining, or without a lease")
        elif path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._send(200, content_type, encode(REGISTRY))
        else:
            self._send(404, "text/plain; charset=utf-8", b"/livez, /readyz or /metrics\n")

    def _answer(self, good: bool, yes: str, no: str) -> None:
        self._send(200 if good else 503, "text/plain; charset=utf-8", f"{yes if good else no}\n".encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
        """Probes come every few seconds: no line for them."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def serve(host: str, port: int, health: Health) -> ThreadingHTTPServer | None:
    """Starts answering; None: port 0, switched off. SettingsError: the address can't be had."""
    if port == 0:
        return None
    handler = type("Handler", (_Handler,), {"health": health})
    try:
        server = _Server((host, port), handler)
    except OSError as error:
        raise SettingsError(
            f"CLUSTER_HTTP_HOST and CLUSTER_HTTP_PORT: can't listen on {host}:{port} ({error.strerror}); choose another, 0 is off"
        ) from error
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
