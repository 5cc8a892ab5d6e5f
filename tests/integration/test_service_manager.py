"""A node under a service manager, on the other end of a real notify socket; and the units that the project ships."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

from cluster.coordinator.service_manager import ServiceManager
from cluster.settings import Settings
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for, wait_until

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SOURCE = """
import os
from pathlib import Path
from cluster import Job

Path(__file__).with_name("at_import").write_text(" ".join(os.environ))

class EnvironmentJob(Job):
    async def perform(self):
        with open("environment", "w") as file:
            file.write(" ".join(os.environ))
"""


class Manager:
    """The manager's end. path: for NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hear(self, beginning: str, timeout: float = 20) -> str:
        """The next message with a line that begins so. TimeoutError: none comes."""
        self._socket.settimeout(timeout)
        while True:
            message = self._socket.recv(4096).decode()
            self.heard.append(message)
            found = [line for line in message.splitlines() if line.startswith(beginning)]
            if found:
                return found[0]

    def forget(self) -> None:
        """What has come so far."""
        self._socket.setblocking(False)
        heard(self._socket)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    yield made
    made.close()


def test_a_node_tells_that_it_is_ready_what_it_does_and_that_it_stops(manager: Manager, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    manager.hear("READY=1")
    assert not any("STOPPING" in message for message in manager.heard)
    assert manager.hear("STATUS=").endswith("may claim")
    node.terminate()
    manager.hear("STOPPING=1")
    assert node.wait_exit() == 0


def test_a_reload_is_told_from_its_beginning_to_its_end(manager: Manager, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    manager.hear("READY=1")
    node.hang_up()
    manager.hear("RELOADING=1")
    manager.hear("READY=1")
    (node.app_dir / "jobs" / "__init__.py").write_text("import nothing_of_the_kind\n")
    node.hang_up()
    manager.hear("RELOADING=1")
    manager.hear("READY=1")
    assert "the newest code can't be used: can't import jobs: ModuleNotFoundError" in manager.hear("STATUS=")


def test_the_watchdog_starves_while_the_loop_stands_still(manager: Manager, run_node: RunNode) -> None:
    node = run_node(SOURCE, processes=1)
    manager.hear("WATCHDOG=1")
    os.kill(node.pid, signal.SIGSTOP)
    wait_until(lambda: state(node.pid) == "T", "it stands still")
    manager.forget()
    with pytest.raises(TimeoutError):
        manager.hear("WATCHDOG=1", timeout=3)
    os.kill(node.pid, signal.SIGCONT)
    manager.hear("WATCHDOG=1")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_workers_and_what_they_start_can_not_speak_for_the_node(
    manager: Manager, conn: psycopg.Connection, run_node: RunNode
) -> None:
    node = run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO environment_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM environment_jobs")
    for file in ("environment", "jobs/at_import"):
        names = (node.app_dir / file).read_text().split()
        assert "PATH" in names
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}.intersection(names)


def test_an_abstract_socket_is_told_and_that_the_node_is_ready_once_it_is() -> None:
    with listening("jobcluster-test-notify") as (ours, environ), closing(ServiceManager.of(environ)) as service:
        service.turned("starting", ready=False)
        service.turned("at work", ready=True)
        service.turned("at work", ready=True)
        assert heard(ours) == ["STATUS=starting", "READY=1", "STATUS=at work"]
        service.turned("busy", ready=True)
        assert not heard(ours)  # another status only seconds later


def test_a_manager_that_is_gone_or_absent_harms_nobody(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}, {"NOTIFY_SOCKET": "x" * 500}):
        with closing(ServiceManager.of(environ)) as service:
            service.turned("at work", ready=True)


def test_ready_is_said_until_it_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "late"
    with closing(ServiceManager.of({"NOTIFY_SOCKET": str(path)})) as service:
        service.turned("at work", ready=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.bind(str(path))
            ours.setblocking(False)
            service.turned("at work", ready=True)
            assert heard(ours) == ["READY=1", "STATUS=at work"]


@pytest.mark.parametrize(("pid", "fed"), [("1", False), ("own", True), ("", True)])
def test_the_watchdog_of_another_process_is_not_fed(pid: str, fed: bool) -> None:
    with listening("jobcluster-test-watchdog") as (ours, environ):
        environ |= {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": pid.replace("own", str(os.getpid()))}
        with closing(ServiceManager.of(environ)) as service:
            service.turned("", ready=False)
        assert not environ
        assert heard(ours) == ["WATCHDOG=1"] * fed


@contextmanager
def listening(name: str) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """An abstract socket, and the environment that names it."""
    name = f"{name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(f"\0{name}")
        ours.setblocking(False)
        yield ours, {"NOTIFY_SOCKET": f"@{name}"}


def heard(ours: socket.socket) -> list[str]:
    messages = []
    with suppress(BlockingIOError):
        while True:
            messages.append(ours.recv(4096).decode())
    return messages


# --- the units ---


def test_a_node_runs_where_memory_can_not_be_made_executable(
    conn: psycopg.Connection, run_node: RunNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the unit's MemoryDenyWriteExecute demands."""

    def deny() -> None:
        assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE

    monkeypatch.setattr(subprocess, "Popen", partial(subprocess.Popen, preexec_fn=deny))
    run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO environment_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM environment_jobs")


def test_a_loop_that_the_watchdog_ends_leaves_its_stack(run_node: RunNode) -> None:
    """By the signal that systemd sends."""
    node = run_node(SOURCE, processes=1)
    os.kill(node.pid, signal.SIGABRT)
    assert node.wait_exit() == -signal.SIGABRT
    assert any("in run_node" in line["event"] for line in node.log())


def setting(unit: str, name: str) -> str:
    """The last value of a unit's setting."""
    lines = (UNITS / unit).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")][-1]


def test_the_unit_leaves_time_for_a_drain() -> None:
    assert int(setting("jobcluster@.service", "TimeoutStopSec")) > Settings().shutdown_timeout.total_seconds()


def test_secrets_have_the_names_that_a_node_reads() -> None:
    for unit in ("jobcluster@.service", "jobcluster-migrate.service"):
        assert setting(unit, "LoadCredential").partition(":")[0] == "cluster_database_url"


@pytest.mark.needs("systemd-analyze")
def test_the_units_are_sound_and_give_a_node_little() -> None:
    """Little: as much as Debian gives redis-server."""
    units = [str(path) for path in [*UNITS.glob("*.service"), *UNITS.glob("*.slice")]]
    verify = ["systemd-analyze", "verify", "--man=no", *units]
    said = subprocess.run(verify, check=False, capture_output=True, text=True).stderr
    assert not [line for line in said.splitlines() if "/opt/jobcluster/bin/jobcluster" not in line]
    judge = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=12"]
    for unit in UNITS.glob("*.service"):
        judged = subprocess.run([*judge, str(unit)], check=False, capture_output=True, text=True)
        assert judged.returncode == 0, judged.stdout


def test_the_environment_file_names_every_setting() -> None:
    command = [sys.executable, "-m", "cluster", "settings", "--env-file"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (UNITS / "jobcluster.env.example").read_text() == printed
    assert all(line.startswith("#") for line in printed.splitlines() if line)


def test_the_installation_can_be_repeated_and_keeps_what_people_wrote(tmp_path: Path) -> None:
    install = [str(UNITS / "install.sh")]
    environment = os.environ | {"DESTDIR": str(tmp_path)}
    said = subprocess.run(install, check=True, env=environment, capture_output=True, text=True).stdout
    assert "systemctl enable --now jobcluster@default" in said
    written = tmp_path / "etc/jobcluster/default.env"
    written.write_text("CLUSTER_JOBS=mail\n")
    secret = tmp_path / "etc/jobcluster/default.database-url"
    assert secret.stat().st_mode & 0o077 == 0
    secret.write_text("postgresql://")
    subprocess.run(install, check=True, env=environment, capture_output=True)
    assert (written.read_text(), secret.read_text()) == ("CLUSTER_JOBS=mail\n", "postgresql://")
    assert (tmp_path / "etc/systemd/system/jobcluster@.service").exists()
