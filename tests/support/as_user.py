"""Run a project's server as an unprivileged user: `python -m tests.support.as_user UID DIRECTORY BIN_DIR`.

Everything is imported while still root: the user may be unable to read this interpreter's files.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psycopg

from cluster.embedded import project_server


def main(uid: int, directory: Path, bin_dir: Path) -> None:
    """Print the server's user, the owner of the data and where that is; the server is stopped again."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    server = project_server(directory, bin_dir)
    server.start()
    try:
        with psycopg.connect(server.url()) as conn:
            conn.execute("SELECT 1")
        print(Path(f"/proc/{server.pid}").stat().st_uid, server.data_dir.stat().st_uid, server.data_dir)
    finally:
        server.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
