"""What systemd is told of a node: that it is ready, what it does, that its loop turns. One datagram for each message.

Without `NOTIFY_SOCKET` there is nobody to tell. What can't be sent must not harm the node.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Self

STATUS_INTERVAL = 5.0
"""Seconds between two lines of status, at least."""


class ServiceManager:
    """Owned by the coordinator's loop. address: of the socket, empty: nobody listens. watchdog: seconds, 0: none."""

    def __init__(self, address: str, watchdog: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # an abstract one
        self._watchdog = watchdog
        self._fed_at = self._status_at = 0.0
        self._status = ""
        self._knows_ready = False
        if self._socket is not None:
            self._socket.setblocking(False)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Self:
        """Takes its variables out: neither workers nor what jobs start may speak for the node."""
        address = environ.pop("NOTIFY_SOCKET", "")
        seconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = pid in {"", str(os.getpid())}
        return cls(address, int(seconds) / 1e6 if seconds.isdecimal() and is_ours else 0.0)

    def turned(self, status: str, *, ready: bool) -> None:
        """The loop turns. status: one line for people. ready: the node may claim; said until it has been heard."""
        now = time.monotonic()
        if ready and not self._knows_ready and self._tell("READY=1"):
            self._knows_ready, self._status_at = True, 0.0
        if self._watchdog and now - self._fed_at >= self._watchdog / 2 - 1 and self._tell("WATCHDOG=1"):
            self._fed_at = now
        if status != self._status and now - self._status_at >= STATUS_INTERVAL and self._tell(f"STATUS={status}"):
            self._status, self._status_at = status, now

    def reloading(self) -> None:
        """Job code is loaded anew; until `reloaded`."""
        if self._knows_ready:
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """It was, or could not be: the status says so."""
        self._knows_ready = self._knows_ready and self._tell("READY=1")
        self._status_at = 0.0

    def stopping(self, status: str) -> None:
        """The node drains."""
        self._tell(f"STOPPING=1\nSTATUS={status}")

    def close(self) -> None:
        """Nothing is told any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, message: str) -> bool:
        """Whether it was sent."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True
