"""A disk that runs full: the server's data directory on a small file system of its own, and a file that takes what is left."""

from __future__ import annotations

import contextlib
import errno
import io
import subprocess
from pathlib import Path

import psycopg

from tests.fault.harness import Stage

SIZE = "160m"
"""Several times what Postgres and a run need, and soon filled."""
BLOCK = 4096


class SmallDiskStage(Stage):
    """Everything of the server's is on the small disk: tables and write-ahead log."""

    PROGRAMS = ("mount", "umount")
    ROOT = True

    @property
    def data_dir(self) -> Path:
        return self._disk / "data"

    @property
    def _disk(self) -> Path:
        return self.folder / "disk"

    def server_settings(self) -> dict[str, str]:
        # Every segment of the log is a new file, so that a full disk is soon met there too.
        return {"wal_recycle": "off", "min_wal_size": "32MB", "max_wal_size": "32MB"}

    def start_server(self) -> None:
        self._disk.mkdir(mode=0o711)
        _do("mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0711", "tmpfs", str(self._disk))
        super().start_server()

    def stop_server(self) -> None:
        try:
            self.free()
            super().stop_server()
        finally:
            _do("umount", "--lazy", str(self._disk))

    def fill(self) -> None:
        """Not a byte is left."""
        with (self._disk / "filler").open("ab", buffering=0) as file:
            for block in (1 << 20, BLOCK):
                while _write(file, block):
                    pass

    def free(self) -> None:
        (self._disk / "filler").unlink(missing_ok=True)

    def use_up_log(self) -> None:
        """Goes on to the next segment of the write-ahead log until there is none: the server gives up."""
        with contextlib.suppress(psycopg.Error), self.connect() as connection:
            for _ in range(100):
                connection.execute("SELECT pg_logical_emit_message(false, 'full', 'x'), pg_switch_wal()")


def _write(file: io.FileIO, size: int) -> bool:
    """False: there was no room for all of it."""
    try:
        return file.write(bytes(size)) == size
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
