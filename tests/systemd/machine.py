"""A machine in a container: a real systemd as its process 1, Debian's Postgres, and the units as an administrator installs them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.support import debian
from tests.support.nodes import wait_until

NODE = "jobcluster@default"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3-venv", "procps", "postgresql")
APP = "opt/jobcluster/app"


class Machine:
    """One that is running. root: its files, seen from outside. Commands are run in it as root."""

    def __init__(self, root: Path, console: Path) -> None:
        self.root = root
        self._console = console
        self._init = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Returns when it is up, which takes a second or two."""
        options = ["--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--quiet"]
        with self._console.open("ab") as output:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", f"--directory={self.root}", f"--machine=jobs-{os.getpid()}", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._has_booted, "the machine is up", 60, self._seen)

    def run(self, command: str) -> str:
        """What it printed. AssertionError: it failed."""
        return debian.run(*self._inside, *shlex.split(command))

    def attempt(self, command: str) -> int:
        """Its exit code."""
        return subprocess.run([*self._inside, *shlex.split(command)], check=False, capture_output=True).returncode

    def show(self, name: str, unit: str = NODE) -> str:
        """A property of a unit, as `systemctl show` names it."""
        return self.run(f"systemctl show --value --property={name} {unit}").strip()

    def pid(self, unit: str = NODE) -> int:
        """Of the unit's main process, as the machine sees it."""
        return int(self.show("MainPID", unit))

    def journal(self, unit: str = NODE) -> str:
        return self.run(f"journalctl --no-pager --output=cat --unit={unit}")

    def probe(self, path: str = "/readyz") -> int:
        """The status of a probe; 0: nobody answers."""
        source = f"""
from http.client import HTTPConnection
try:
    connection = HTTPConnection("127.0.0.1", 9464, timeout=5)
    connection.request("GET", "{path}")
    print(connection.getresponse().status)
except OSError:
    print(0)
"""
        return int(debian.run(*self._inside, "python3", "-c", source))

    def write(self, path: str, text: str) -> None:
        """A file of its disk (/run and /tmp are not); it keeps its owner and mode if it is there."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def connect(self, database: str = "jobs") -> psycopg.Connection[Any]:
        """To its Postgres, as the superuser, in autocommit."""
        folder = f"/proc/{self._init}/root/run/postgresql"
        return psycopg.connect(host=folder, dbname=database, user="postgres", autocommit=True)

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 30) -> float:
        """As `wait_until`; a failure shows the journal."""
        return wait_until(condition, what, timeout, lambda: self.run("journalctl --no-pager --boot --lines=60"))

    def state(self, unit: str = NODE) -> str:
        """`active/running`, say."""
        lines = self.run(f"systemctl show --property=ActiveState,SubState {unit}").splitlines()
        found = dict(line.split("=") for line in lines)
        return f"{found['ActiveState']}/{found['SubState']}"

    def wait_state(self, state: str, unit: str = NODE, timeout: float = 30) -> float:
        return self.wait(lambda: self.state(unit) == state, f"{unit} is {state}", timeout)

    def reboot(self) -> None:
        """Returns when it is up again."""
        assert self._nspawn
        self.attempt("systemctl reboot")  # its connection may go before it has answered
        assert self._nspawn.wait(60) == 133, "what systemd-nspawn says when it wants to be started again"
        self.boot()

    def destroy(self) -> None:
        """As if its power went."""
        for pid in self._children():
            os.kill(pid, signal.SIGKILL)
        if self._nspawn is not None:
            self._nspawn.wait(30)

    @property
    def _inside(self) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._init), "--all", "--")

    def _has_booted(self) -> bool:
        """Looks anew which process is the first: the launcher starts it by way of another one, which is still on our machine."""
        ours = Path("/proc/self/ns/pid").readlink()
        with suppress(OSError):
            for pid in self._children():
                if Path(f"/proc/{pid}/ns/pid").readlink() != ours:
                    self._init = pid
                    return self.attempt("systemctl is-system-running --wait") == 0
        return False

    def _children(self) -> list[int]:
        """Of the launcher; none if it has ended."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return []
        path = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def _seen(self) -> str:
        return self._console.read_text(errors="replace")[-4000:]


@contextmanager
def running(layers: Sequence[Path], folder: Path) -> Iterator[Machine]:
    """A machine whose files are those layers, the upper first. What it writes is another one, `upper` in the folder."""
    own = {name: folder / name for name in ("root", "upper", "work")}
    for path in own.values():
        path.mkdir(parents=True)
    lower = ":".join(str(layer) for layer in layers)
    options = f"lowerdir={lower},upperdir={own['upper']},workdir={own['work']}"
    debian.run("mount", "-t", "overlay", "-o", options, "overlay", own["root"])
    try:
        machine = Machine(own["root"], folder / "console")
        try:
            machine.boot()
            yield machine
        finally:
            machine.destroy()
    finally:
        debian.run("umount", own["root"])


def install(root: Path, wheels: Path) -> None:
    """Debian, the environment /opt/jobcluster, and the units, as a package would do it; nothing runs yet."""
    debian.run("tar", "--extract", "--directory", root, "--file", debian.archive(*PACKAGES))
    chroot = ("chroot", root)
    debian.run(*chroot, "python3", "-m", "venv", "/opt/jobcluster")
    debian.run("cp", "-r", wheels, root / "wheels")
    pip = "/opt/jobcluster/bin/pip"
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    debian.run(
        *chroot, pip, "install", "--quiet", "--no-index", "--find-links=/wheels", "jobcluster[dashboard]", env=clean
    )
    debian.run(debian.ROOT / "deploy/systemd/install.sh", env={**clean, "DESTDIR": str(root)})
    debian.run(*chroot, "systemd-sysusers", "jobcluster.conf")
    (root / "etc/hostname").write_text("jobs\n")
    (root / "etc/postgresql/15/main/pg_hba.conf").write_text(
        "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    )
