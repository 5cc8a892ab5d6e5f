"""What a running server says about itself in postmaster.pid: whether it lives, and how to reach it. Writes nothing."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cluster.embedded.programs import Account, write_private

SUPERUSER = "postgres"
# Linux counts to 2**22, macOS to 99998.
NO_PROCESS = 2**22 + 1


@dataclass(frozen=True)
class Postmaster:
    """What a living server has written into postmaster.pid; `ready` means that it takes connections."""

    pid: int
    port: int
    socket_dir: Path
    tcp: bool
    ready: bool


def read_postmaster(data_dir: Path) -> Postmaster | None:
    """None without a living server: no pid file, or one that a crash, or a copy of the directory, left."""
    lines = _pid_file(data_dir)
    if len(lines) < 5 or not is_postmaster(int(lines[0]), data_dir):
        return None
    lines += [""] * (8 - len(lines))
    ready = lines[7].strip() == "ready"
    return Postmaster(int(lines[0]), int(lines[3]), Path(lines[4]), tcp=lines[5] != "", ready=ready)


def is_postmaster(pid: int, data_dir: Path) -> bool:
    """Compares the command line, which any user may read, since process ids are used again."""
    return f"-D {data_dir}" in _command_line(pid)


def disown_pid_file(data_dir: Path, account: Account | None) -> None:
    """Let Postgres see that a pid file is stale although its number is taken, by a stranger or by a zombie.

    Only the number is replaced: the rest lets Postgres find sessions of the dead server that still write. Whatever
    looks like a Postgres is left for Postgres to judge.
    """
    lines = _pid_file(data_dir)
    if lines and "postgres" not in _command_line(int(lines[0])).split(" ", 1)[0]:
        text = "\n".join([str(NO_PROCESS), *lines[1:]]) + "\n"
        write_private(data_dir / "postmaster.pid", text, account)


def url_of(server: Postmaster, password: str, dbname: str) -> str:
    """A libpq URI."""
    if server.tcp:
        address = f"{SUPERUSER}:{quote(password, safe='')}@127.0.0.1:{server.port}"
        # The server has no certificate, and some drivers insist on TLS unless told otherwise.
        return f"postgresql://{address}/{quote(dbname, safe='')}?sslmode=disable"
    host = quote(str(server.socket_dir), safe="")
    return f"postgresql://{SUPERUSER}@/{quote(dbname, safe='')}?host={host}&port={server.port}"


def _pid_file(data_dir: Path) -> list[str]:
    try:
        return (data_dir / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _command_line(pid: int) -> str:
    """Empty for a process that is gone or a zombie."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="surrogateescape")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    shown = subprocess.run(["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, check=False)
    return os.fsdecode(shown.stdout).strip()
