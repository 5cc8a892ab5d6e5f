"""PgBouncer in transaction mode, in front of a test's server."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = "pgbouncer"


class Pooler:
    """database: of the server, as PgBouncer's configuration has it: "host=… port=… user=… pool_size=…".

    owner: a folder; root lets PgBouncer run as whoever owns it, as nobody by default. It refuses to run as root.
    """

    def __init__(self, folder: Path, port: int, name: str, database: str, *, owner: Path | None = None) -> None:
        self._folder = folder
        self._owner = owner
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self._configuration = folder / "pgbouncer.ini"
        self._configuration.write_text(
            f"[databases]\n{name} = {database}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\nunix_socket_dir =\n"
        )
        self._configuration.chmod(0o644)

    def start(self) -> None:
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody") if self._owner is None else pwd.getpwuid(self._owner.stat().st_uid)
            as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with (self._folder / "pgbouncer.log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(self._configuration)], stderr=log, stdout=log, **as_user)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def is_up(self) -> bool:
        """Whether it takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
