"""One Postgres server: initdb, start, stop, and the settings it runs with. Writes below its data directory only."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cluster.embedded.postmaster import (
    SUPERUSER,
    Postmaster,
    disown_pid_file,
    is_postmaster,
    read_postmaster,
    url_of,
)
from cluster.embedded.programs import (
    account_for,
    locked,
    major_version,
    make_private_dir,
    programs_for,
    run_as,
    short_hash,
    wheel_bin_dir,
    write_private,
)
from cluster.errors import ClusterError

StopMode = Literal["smart", "fast", "immediate"]

SECONDS_TO_START_OR_STOP = 60
SECONDS_FOR_ORPHANS = 20
# 103 bytes hold a socket's path on macOS, 107 on Linux; "/jobcluster-<12>/.s.PGSQL.65535" takes 40 of them.
LONGEST_TEMP_FOLDER = 60


class EmbeddedPostgres:
    """One data directory and the server that runs on it; the server outlives this object and this process.

    `port=None` listens on a Unix socket only. With a port it listens on 127.0.0.1 too, for clients that know
    `password`; a port which is taken is replaced when the server starts. `fast` gives up what only a crash of the
    machine would need. `settings` are further lines of postgresql.conf.
    """

    def __init__(
        self,
        data_dir: Path,
        bin_dir: Path | None = None,
        *,
        port: int | None = None,
        password: str | None = None,
        fast: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.bin_dir = (bin_dir or wheel_bin_dir()).absolute()
        self.port = port
        self.password = password or secrets.token_urlsafe(24)
        self.fast = fast
        self.settings = dict(settings or {})
        self._account = account_for(self.data_dir)

    def start(self) -> bool:
        """Start the server, after initdb if it has no data yet; False when it was running already."""
        _refuse_unquotable(self.data_dir)
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._lock_file):
            if self.running:
                return False
            self.bin_dir = programs_for(self._account, self.bin_dir)
            self._initialise()
            self._choose_port()
            self._launch()
        return True

    @contextmanager
    def used(self) -> Iterator[None]:
        """Up as long as anybody uses it: the first of them starts it, the last one out stops it."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        users = self.data_dir.with_name(self.data_dir.name + ".users")
        descriptor = os.open(users, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self.start()
            try:
                yield
            finally:
                with suppress(BlockingIOError):  # others use it
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.stop()
        finally:
            os.close(descriptor)

    def stop(self, mode: StopMode = "fast") -> None:
        """Return when the server's last process has gone; a mode that takes too long becomes `immediate`."""
        if not self.running:
            return
        with locked(self._lock_file):
            pid = self.pid
            if pid is None:
                return
            self.bin_dir = programs_for(self._account, self.bin_dir)
            self._end(mode)
            # The pid file goes a moment before the process does.
            _wait_for_exit(pid, self.data_dir)
            self._remove_socket_dir()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start; connections break, as in a real restart."""
        self.stop(mode)
        self.start()

    def url(self, dbname: str = "postgres") -> str:
        """A libpq URI: TCP with the password where the server listens on TCP, its Unix socket otherwise."""
        planned = Postmaster(0, self._port_or_default, self._socket_dir(), tcp=self.port is not None, ready=False)
        return url_of(read_postmaster(self.data_dir) or planned, self.password, dbname)

    @property
    def running(self) -> bool:
        """Whether this data directory has a living server, no matter who started it."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None when there is no server."""
        found = read_postmaster(self.data_dir)
        return found.pid if found else None

    @property
    def log_file(self) -> Path:
        """Everything that the server has printed."""
        return self.data_dir / "server.log"

    @property
    def _lock_file(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".lock")

    def _initialise(self) -> None:
        version_file = self.data_dir / "PG_VERSION"
        version = major_version(self.bin_dir)
        if not version_file.exists():
            self._initdb(version)
        elif (written_by := version_file.read_text().strip()) != str(version):
            raise ClusterError(
                f"{self.data_dir} was written by PostgreSQL {written_by} and the programs are PostgreSQL {version}: "
                "remove that directory to start with an empty database"
            )

    def _initdb(self, version: int) -> None:
        """Build next to the final place and rename, so that a killed initdb leaves nothing that looks complete."""
        unfinished = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_private_dir(unfinished, self._account)
        locale = "C" if sys.platform == "darwin" else "C.UTF-8"
        options = ["--no-sync", "--encoding=UTF8", f"--locale={locale}", f"--username={SUPERUSER}"]
        options += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        if version >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run("initdb", "-D", str(unfinished), *options)
        with (unfinished / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude 'jobcluster.conf'\n")
        unfinished.rename(self.data_dir)

    def _choose_port(self) -> None:
        if self.port is not None and not _is_free(self.port):
            self.port = free_port()

    def _launch(self) -> None:
        make_private_dir(self._socket_dir(), self._account)
        self._remove_sockets()
        disown_pid_file(self.data_dir, self._account)
        write_private(self.data_dir / "jobcluster.conf", self._configuration(), self._account)
        self._launch_after_the_last()
        if self.port is not None:
            self._set_password()

    def _launch_after_the_last(self) -> None:
        """The sessions of a server that was killed notice that within moments; until then Postgres refuses to start."""
        deadline = time.monotonic() + SECONDS_FOR_ORPHANS
        while True:
            try:
                return self._pg_ctl("start", "-l", str(self.log_file))
            except ClusterError as error:
                if "is still in use" not in str(error) or time.monotonic() > deadline:
                    self._remove_socket_dir()
                    raise
                time.sleep(0.1)

    def _end(self, mode: StopMode) -> None:
        try:
            self._pg_ctl("stop", "-m", mode)
        except ClusterError:
            if self.running:
                self._pg_ctl("stop", "-m", "immediate")

    def _configuration(self) -> str:
        settings = {
            "unix_socket_directories": str(self._socket_dir()),
            "unix_socket_permissions": "0700",
            "listen_addresses": "" if self.port is None else "127.0.0.1",
            "port": str(self._port_or_default),
            # A query whose client was killed ends within a second, and so do its locks.
            "client_connection_check_interval": "1s",
        }
        if self.fast:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}
            settings |= {"shared_buffers": "128MB", "max_connections": "300"}
            if major_version(self.bin_dir) >= 18:
                settings["io_method"] = "sync"
        settings |= self.settings
        return "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items())

    def _set_password(self) -> None:
        """At every start: the state file, where the password lives, may be younger than the data."""
        address = make_conninfo(host=str(self._socket_dir()), port=self.port, user=SUPERUSER, dbname="postgres")
        statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(SUPERUSER), self.password)
        with psycopg.connect(address, autocommit=True) as conn:
            conn.execute(statement)

    @property
    def _port_or_default(self) -> int:
        """Without TCP the number is still part of the socket's name."""
        return self.port or 5432

    def _socket_dir(self) -> Path:
        """Short whatever the depth of the project; the name differs by user, since the folder belongs to one."""
        temp_folder = tempfile.gettempdir()
        if len(os.fsencode(temp_folder)) > LONGEST_TEMP_FOLDER:
            temp_folder = "/tmp"  # noqa: S108 - the folder made in it is private, and checked
        return Path(temp_folder, f"jobcluster-{short_hash(f'{os.geteuid()} {self.data_dir}')}")

    def _remove_sockets(self) -> None:
        """What a killed server has left: its number, kept beside the socket, may be another process's by now."""
        for left in self._socket_dir().glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    def _remove_socket_dir(self) -> None:
        self._remove_sockets()
        with suppress(OSError):
            self._socket_dir().rmdir()

    def _pg_ctl(self, command: str, *options: str) -> None:
        wait = ["-w", "-t", str(SECONDS_TO_START_OR_STOP)]
        try:
            self._run("pg_ctl", "-D", str(self.data_dir), command, *wait, *options)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{_last_lines(self.log_file)}".strip()) from error

    def _run(self, program: str, *arguments: str) -> None:
        result = run_as(self._account, self.bin_dir / program, *arguments)
        if result.returncode != 0:
            raise ClusterError(f"{program} failed: {(result.stderr or result.stdout).strip()}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Postgres does: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _wait_for_exit(pid: int, data_dir: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START_OR_STOP
    while is_postmaster(pid, data_dir) and time.monotonic() < deadline:
        time.sleep(0.01)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _refuse_unquotable(data_dir: Path) -> None:
    if set('"$`\\\n') & set(str(data_dir)):
        raise ClusterError(f"pg_ctl can't handle the quotes, dollars or backslashes in the path {data_dir}")


def _last_lines(log_file: Path) -> str:
    try:
        return "\n".join(log_file.read_text(errors="replace").splitlines()[-8:])
    except OSError:
        return ""


@contextmanager
def disposable_server(
    bin_dir: Path | None = None, *, fast: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """One that runs, and that is removed at the end with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="jobcluster-"))
    folder.chmod(0o711)  # passable for the server's user, which is not ours when we are root
    server = EmbeddedPostgres(folder / "data", bin_dir, fast=fast, settings=settings)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
