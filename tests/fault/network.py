"""Hosts of a scenario as network namespaces: every node and the server has one, and a router joins them, or does not.

Nothing outside these namespaces is touched. Packets are dropped silently, as a broken network does; nobody is told.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fault.harness import Stage

SERVER = 9
_CLONE_NEWNET = 0x40000000


class Network:
    """A router and hosts 10.77.N.2. Needs root and the program ip."""

    def __init__(self) -> None:
        self._name = f"jc{os.getpid()}"
        self._namespaces: list[str] = []

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.{host}.2"

    def namespace(self, host: int) -> str:
        return f"{self._name}h{host}"

    @property
    def _router(self) -> str:
        return f"{self._name}r"

    def start(self) -> None:
        self._add_namespace(self._router)
        self.ip("netns", "exec", self._router, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def add_host(self, host: int) -> None:
        namespace = self.namespace(host)
        self._add_namespace(namespace)
        self.ip(
            "-n", self._router, "link", "add", f"h{host}", "type", "veth", "peer", "name", "eth0", "netns", namespace
        )
        for where, device, number in ((self._router, f"h{host}", 1), (namespace, "eth0", 2)):
            self.ip("-n", where, "addr", "add", f"10.77.{host}.{number}/24", "dev", device)
            self.ip("-n", where, "link", "set", device, "up")
        self.ip("-n", namespace, "route", "add", "default", "via", f"10.77.{host}.1")

    def cut(self, host: int, *directions: str) -> None:
        """directions: "from" and "to" the host."""
        for direction in directions:
            self.ip("-n", self._router, "rule", "add", direction, self.address(host), "blackhole")

    def heal(self, host: int, *directions: str) -> None:
        for direction in directions:
            self.ip("-n", self._router, "rule", "del", direction, self.address(host), "blackhole")

    def stop(self) -> None:
        for namespace in self._namespaces:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.ip("netns", "del", namespace)

    @staticmethod
    def ip(*arguments: str) -> None:
        """The program."""
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def _add_namespace(self, name: str) -> None:
        self.ip("netns", "add", name)
        self._namespaces.append(name)
        self.ip("-n", name, "link", "set", "lo", "up")


class NetworkStage(Stage):
    """Nodes reach the server through a router; the harness uses the server's Unix socket, which namespaces do not separate."""

    PROGRAMS = ("ip",)
    ROOT = True

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        self.server.port = None
        self.network = Network()

    def server_settings(self) -> dict[str, str]:
        return {"listen_addresses": "*", "hba_file": str(self.folder / "hba.conf")}

    def start_server(self) -> None:
        (self.folder / "hba.conf").write_text("local all all trust\nhost all all 10.77.0.0/16 trust\n")
        (self.folder / "hba.conf").chmod(0o644)
        self.network.start()
        self.network.add_host(SERVER)
        inside(self.network.namespace(SERVER), self.server.start)

    def stop_server(self) -> None:
        super().stop_server()
        self.network.stop()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.server._socket_dir()}"

    def node_url(self, number: int) -> str:
        return f"postgresql://postgres@{self.network.address(SERVER)}/postgres"

    def node_options(self, number: int) -> dict[str, Any]:
        self.network.add_host(number)
        return {"prefix": ("ip", "netns", "exec", self.network.namespace(number))}


def inside(namespace: str, action: Callable[[], object]) -> None:
    """Runs the action in a thread that is in the namespace, and with it every process that the action starts."""
    failure: list[BaseException] = []

    def act() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path("/run/netns", namespace).open() as handle:
                if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            action()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            failure.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
