"""A network that loses and delays packets, below TCP: a switch of our own joins the hosts, since not every kernel has netem.

Each host's interface is a TAP device in its namespace. The switch holds their other ends: a packet that it does not pass on
is lost, and TCP has to find out.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from pathlib import Path

from tests.fault.network import Network, NetworkStage, inside

DEVICE = "/dev/net/tun"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_BROADCAST = b"\xff" * 6
_LONGEST = 2048
"""Bytes of a frame: more than any interface here sends."""


class Switch:
    """Passes frames on, in a thread of its own."""

    def __init__(self) -> None:
        self.delay = 0.0
        """Seconds by which every packet is late."""
        self.loss = 0.0
        """Share of the packets that are lost."""
        self.lost = 0
        """Packets so far."""
        self._ports: list[int] = []
        self._port_of: dict[bytes, int] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()
        self._poll = select.poll()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The interfaces of the hosts vanish with their other ends."""
        self._stop.set()
        self._thread.join()
        for port in self._ports:
            os.close(port)

    def plug_in(self) -> None:
        """Makes the interface eth0 in the namespace of the calling thread."""
        port = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(port, _TUNSETIFF, struct.pack("16sH", b"eth0", _IFF_TAP | _IFF_NO_PI))
        self._ports.append(port)
        self._poll.register(port, select.POLLIN)

    def _run(self) -> None:
        while not self._stop.is_set():
            due_in = self._waiting[0][0] - time.monotonic() if self._waiting else 0.02
            for port, _ in self._poll.poll(max(0.0, min(due_in, 0.02)) * 1000):
                self._receive(port)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, port, frame = heapq.heappop(self._waiting)
                self._send(port, frame)

    def _receive(self, port: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while frame := os.read(port, _LONGEST):
                self._port_of[frame[6:12]] = port
                if random.random() < self.loss:
                    self.lost += 1
                else:
                    entry = (time.monotonic() + self.delay, next(self._numbers), port, frame)
                    heapq.heappush(self._waiting, entry)

    def _send(self, source: int, frame: bytes) -> None:
        known = self._port_of.get(frame[:6])
        targets = [known] if known is not None else [port for port in self._ports if port != source]
        for port in targets:
            with contextlib.suppress(OSError):  # an interface that is not up yet, or is full
                os.write(port, frame)


class SwitchedNetwork(Network):
    """Hosts 10.77.N.2 that all hang on one switch."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = Switch()

    def start(self) -> None:
        self.switch.start()

    def add_host(self, host: int) -> None:
        namespace = self.namespace(host)
        self._add_namespace(namespace)
        inside(namespace, self.switch.plug_in)
        self.ip("-n", namespace, "addr", "add", f"{self.address(host)}/16", "dev", "eth0")
        self.ip("-n", namespace, "link", "set", "eth0", "up")

    def retransmitted(self) -> int:
        """TCP segments that the hosts have sent again so far."""
        counts: list[int] = []
        for namespace in self._namespaces:
            inside(namespace, lambda: counts.append(_retransmitted()))
        return sum(counts)

    def stop(self) -> None:
        self.switch.stop()
        super().stop()


class LossyStage(NetworkStage):
    """Nodes reach the server through the switch."""

    DEVICES = (DEVICE,)

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        self.network: SwitchedNetwork = SwitchedNetwork()


def _retransmitted() -> int:
    """In the namespace of the calling thread."""
    names, values = (
        line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(dict(zip(names, values, strict=True))["RetransSegs"])
