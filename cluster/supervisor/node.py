"""One node of a supervisor: a child that runs `cluster run`, and says through a socket of its own that it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Mapping
from typing import Self

from cluster.errors import ExitCode
from cluster.supervisor.run_folder import NodeEntry, Process


class _Notices(asyncio.DatagramProtocol):
    """What the node says, in the words that systemd understands."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.ready_at = 0.0
        self.closing: asyncio.Task[None] | None = None
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self, folder: str) -> None:
        """Hears nothing more. folder: of the socket."""
        if self._transport is not None:
            self._transport.close()
        shutil.rmtree(folder, ignore_errors=True)

    def datagram_received(self, data: bytes, _: object) -> None:
        if b"READY=1" in data.split(b"\n") and not self.ready.is_set():
            self.ready_at = time.monotonic()
            self.ready.set()


class Node:
    """From its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, notices: _Notices, queues: str, http_port: int) -> None:
        self.entry = NodeEntry(Process.of(process.pid), queues, http_port)
        self._process = process
        self._notices = notices
        self._is_draining = False

    @classmethod
    async def start(cls, environment: Mapping[str, str], queues: str, http_port: int) -> Self:
        """OSError: the system refuses. The node logs where the supervisor does."""
        notices = _Notices()
        # A folder of its own for each: what cleans up behind programs may take one that is old. Paths of sockets must be short.
        folder = tempfile.mkdtemp(prefix="jobcluster-")
        try:
            address = f"{folder}/notify"
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(lambda: notices, local_addr=address, family=socket.AF_UNIX)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cluster", "run",
                env={**environment, "NOTIFY_SOCKET": address}, stdin=DEVNULL, stdout=sys.stderr,
            )  # fmt: skip
        except BaseException:
            notices.close(folder)
            raise
        node = cls(process, notices, queues, http_port)
        notices.closing = loop.create_task(node._close(folder))
        return node

    async def _close(self, folder: str) -> None:
        await self._process.wait()
        self._notices.close(folder)

    @property
    def ready_for(self) -> float:
        """Seconds since it became ready; 0: it is not."""
        return time.monotonic() - self._notices.ready_at if self._notices.ready.is_set() else 0.0

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    async def ended(self) -> int:
        """Its exit code; 128 and more: the signal that ended it."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    async def failure(self) -> int:
        """Waits until it is ready: 0; or has ended before that: its exit code, never 0."""
        ready = asyncio.create_task(self._notices.ready.wait())
        ended = asyncio.create_task(self.ended())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            return 0 if ready.done() else ended.result() or ExitCode.ERROR
        finally:
            ready.cancel()
            ended.cancel()

    async def drain(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL for one that does not end within so many seconds."""
        if not self._is_draining:  # a second signal would be another message
            self._is_draining = True
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                await self.ended()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.ended()

    def signal(self, number: signal.Signals) -> None:
        """If it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
