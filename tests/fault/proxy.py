"""A TCP proxy between a node and Postgres that loses answers at a chosen moment, or delays everything."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path

from tests.fault.harness import Stage

CHANGED_ROWS = re.compile(rb"UPDATE [1-9]\d*\0")
"""In an answer: a statement has changed rows, and will have committed by the time the answer is sent."""


class Line:
    """One connection through the proxy. session: the node's name for it, such as claim or finish."""

    def __init__(self, upstream: asyncio.StreamWriter, downstream: asyncio.StreamWriter) -> None:
        self.session = ""
        self.mute = False
        """Answers are swallowed from now on; nobody is told."""
        self.dead = False
        """Nothing passes any more, not even the end of the connection: as if the node's host had lost its power."""
        self._writers = (upstream, downstream)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class Proxy:
    """Listens on a port of its own. target: a port, or a Unix socket. Lives in a thread.

    answered: sees every piece of an answer first; False: it is lost.
    """

    def __init__(self, target: int | Path) -> None:
        self.port = 0
        self.delay = 0.0
        """Seconds by which everything is late, in both directions."""
        self.answered: Callable[[Line, bytes], bool] = lambda line, data: True
        self.asked: Callable[[Line, bytes], bytes] = lambda line, data: data
        """Sees every piece of a request first, and says what passes."""
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        pumps = asyncio.all_tasks(self._loop)
        for pump in pumps:
            pump.cancel()
        if pumps:
            self._loop.run_until_complete(asyncio.gather(*pumps, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # sockets close a turn later
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await self._connect()
        except OSError:
            writer.close()
            return
        line = Line(server_writer, writer)
        pumps = [self._ask(line, reader, server_writer), self._answer(line, server_reader, writer)]
        try:
            with contextlib.suppress(ConnectionError, OSError):
                await asyncio.gather(*pumps)
        finally:
            task = asyncio.current_task()
            if not line.dead or (task is not None and task.cancelling()):
                line.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _ask(self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not line.session and (found := re.search(rb"jobcluster (\w+)", data)):
                line.session = found[1].decode()
            data = b"" if line.dead else self.asked(line, data)
            await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
        if not line.dead:
            line.close()

    async def _answer(self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if line.dead or not self.answered(line, data) or line.mute:
                continue
            await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()
        line.close()


class ProxyStage(Stage):
    """Every node reaches the server through a proxy of its own."""

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        self.proxies: list[Proxy] = []

    def node_url(self, number: int) -> str:
        assert self.server.port is not None
        proxy = Proxy(self.server.port)
        proxy.start()
        self.proxies.append(proxy)
        return self.server.url().replace(f":{self.server.port}/", f":{proxy.port}/")

    def stop_server(self) -> None:
        for proxy in self.proxies:
            proxy.stop()
        super().stop_server()


class Loss:
    """Loses the answer to a session's next statement that changed rows. hang: without a word; otherwise the connection breaks."""

    def __init__(self, session: str, *, hang: bool) -> None:
        self.lost = threading.Event()
        self._session = session
        self._hang = hang

    def __call__(self, line: Line, data: bytes) -> bool:
        if self.lost.is_set() or line.session != self._session or not CHANGED_ROWS.search(data):
            return True
        self.lost.set()
        if self._hang:
            line.mute = True
        else:
            line.close()
        return False


class HalfClaim:
    """Lets a claim of a limited type through without its COMMIT, and nothing more on that connection."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def __call__(self, line: Line, data: bytes) -> bytes:
        if self.done.is_set() or line.session != "claim":
            return data
        statement = _before_commit(data)
        if statement is None:
            return data
        self.done.set()
        line.dead = True
        return statement


def _before_commit(data: bytes) -> bytes | None:
    """A request of BEGIN, lock, claim and COMMIT, up to the claim. None: it is another one.

    Each message is a letter and its length; an `E` executes one statement.
    """
    position, executed = 0, []
    while position + 5 <= len(data):
        letter = data[position : position + 1]
        position += 1 + int.from_bytes(data[position + 1 : position + 5])
        if letter == b"E":
            executed.append(position)
    return data[: executed[2]] if position == len(data) and len(executed) >= 4 else None
