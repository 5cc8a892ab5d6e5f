"""/livez, /readyz and /metrics of a node, answered by a thread with a loop of its own: they must speak when the node's does not.

One request for each connection, and little patience: whoever dribbles bytes keeps nobody else from an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
import time
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from pathlib import Path

from prometheus_client.exposition import choose_encoder

from cluster import metrics
from cluster.errors import SettingsError

STALLED = 10.0
"""Seconds without a turn of the coordinator's loop after which it counts as dead."""
PATIENCE = 5.0
"""Seconds for a request to come, and for its answer to be read."""
MOST_CONNECTIONS = 64
"""Beyond them the one that has waited longest is closed."""
BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted. Beyond them a client tries again a second later."""
LONGEST_HEAD = 16 * 1024
_PLAIN = "text/plain; charset=utf-8"


class Health:
    """What the probes tell. Written by the loop, read by the server's thread; single values, so no lock."""

    def __init__(self) -> None:
        self.turned_at = time.monotonic()
        self.ready = False

    @property
    def alive(self) -> bool:
        return time.monotonic() - self.turned_at < STALLED


class ProbeServer:
    """Answers from its start until it is closed."""

    def __init__(self, listening: socket.socket, health: Health) -> None:
        self._health = health
        self._listening = listening
        self._loop = asyncio.SelectorEventLoop()
        self._ended = asyncio.Event()
        self._connections: dict[asyncio.StreamWriter, None] = {}
        """In the order in which they came."""
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when nothing answers any more."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        if self._listening.family == socket.AF_UNIX:
            server = await asyncio.start_unix_server(
                self._answer, sock=self._listening, limit=LONGEST_HEAD, backlog=BACKLOG
            )
        else:
            server = await asyncio.start_server(self._answer, sock=self._listening, limit=LONGEST_HEAD, backlog=BACKLOG)
        await self._ended.wait()
        self._loop.remove_reader(self._listening.fileno())  # what it accepts while it closes would be left open
        while len(asyncio.all_tasks()) > 1:
            for writer in self._connections:
                writer.transport.abort()
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # in which the last of them close
        server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = None
        if len(self._connections) > MOST_CONNECTIONS:
            next(iter(self._connections)).transport.abort()
        try:
            with contextlib.suppress(OSError, EOFError):  # TimeoutError is one
                async with asyncio.timeout(PATIENCE):
                    writer.write(await self._response(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            self._connections.pop(writer, None)
            writer.transport.abort()

    async def _response(self, reader: asyncio.StreamReader) -> bytes:
        """EOFError: the client has gone before its request had come."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a request for a probe is short\n")
        line, _, rest = head.partition(b"\r\n")
        try:
            method, target, protocol = line.decode("ascii").split(" ")
            headers = parse_headers(io.BytesIO(rest))
        except (ValueError, HTTPException):
            return _response(HTTPStatus.BAD_REQUEST, "this is no HTTP request\n")
        if not protocol.startswith("HTTP/1."):
            return _response(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here\n")
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD\n")
        response = self._page(target.partition("?")[0], headers)
        return response if method == "GET" else response[: response.index(b"\r\n\r\n") + 4]

    def _page(self, path: str, headers: Message) -> bytes:
        match path:
            case "/livez" if self._health.alive:
                return _response(HTTPStatus.OK, "alive\n")
            case "/livez":
                return _response(HTTPStatus.SERVICE_UNAVAILABLE, "the coordinator's loop does not turn\n")
            case "/readyz" if self._health.ready:
                return _response(HTTPStatus.OK, "ready\n")
            case "/readyz":
                return _response(HTTPStatus.SERVICE_UNAVAILABLE, "starting, draining, or without a lease\n")
            case "/metrics":
                encode, content_type = choose_encoder(headers.get("Accept", ""))
                return _response(HTTPStatus.OK, encode(metrics.registry), content_type)
            case _:
                return _response(HTTPStatus.NOT_FOUND, "/livez, /readyz or /metrics\n")


def _response(status: HTTPStatus, body: str | bytes, content_type: str = _PLAIN) -> bytes:
    raw = body.encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(raw)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + raw


def serve(host: str, port: int, health: Health) -> ProbeServer | None:
    """Starts answering; None: port 0, switched off. SettingsError: the address can't be had.

    host: a name or address, `::` for IPv6 and IPv4, or the path of a Unix socket, which needs no port.
    """
    if port == 0:
        return None
    try:
        listening = _listen(host, port)
    except OSError as error:
        where = host if host.startswith("/") else f"{host}:{port}"
        raise SettingsError(
            f"CLUSTER_HTTP_HOST and CLUSTER_HTTP_PORT: can't listen on {where} ({error.strerror or error});"
            " choose another, 0 is off"
        ) from error
    return ProbeServer(listening, health)


def _listen(host: str, port: int) -> socket.socket:
    if host.startswith("/"):
        return _listen_at(Path(host))
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, dualstack_ipv6=both, backlog=BACKLOG)


def _listen_at(path: Path) -> socket.socket:
    """A socket that a dead node has left there is replaced; a file of another kind is refused by bind, and stays."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.is_socket():
                path.unlink()
        except FileNotFoundError:
            pass
        else:
            raise OSError(None, "another process listens there")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    listening.listen(BACKLOG)
    return listening
