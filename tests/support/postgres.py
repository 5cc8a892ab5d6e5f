"""The one Postgres of a test run: started by the first test that needs it, shared by all pytest-xdist workers.

The controller makes the folder and removes it at the end. A watcher process does so instead if the controller is
killed: it waits on a pipe whose other end only the controller holds.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql

from cluster.embedded import EmbeddedPostgres

TEMPLATE = "template_cluster"


class RunServer:
    """Owned by the controller; every worker builds its own from the folder, and starting is idempotent."""

    def __init__(self, folder: Path, bin_dir: Path | None) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "data", bin_dir, fast=True)
        self._template_ready = False

    def start(self) -> EmbeddedPostgres:
        """The running server of this test run."""
        self.postgres.start()
        return self.postgres

    def end(self) -> None:
        """Stop the server, whatever it is doing, and remove all it has written."""
        self.postgres.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def database(self, template: str = "template0") -> Iterator[str]:
        """The URL of a new database, dropped afterwards even if connections are left."""
        name = f"test_{uuid4().hex[:16]}"
        with self._admin() as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )
        try:
            if template == TEMPLATE:
                self._record_identity(name)
            yield self.postgres.url(name)
        finally:
            # A test may have stopped or killed the server.
            self.start()
            with self._admin() as conn:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def template(self) -> str:
        """The name of a migrated database to clone; made once per run, by whichever worker comes first."""
        if not self._template_ready:
            self.start()
            with self._one_at_a_time(), self._admin() as conn:
                if conn.execute("SELECT FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone() is None:
                    self._make_template(conn)
            self._template_ready = True
        return TEMPLATE

    def _make_template(self, conn: psycopg.Connection) -> None:
        """Renamed last: a migration that fails leaves no template."""
        # Late, so that tests which need no schema run while the migrations are broken.
        from cluster.migration import migrate_schema

        conn.execute("DROP DATABASE IF EXISTS template_unfinished")
        conn.execute("CREATE DATABASE template_unfinished TEMPLATE template0")
        with psycopg.connect(self.postgres.url("template_unfinished"), autocommit=True) as migrating:
            migrate_schema(migrating)
            migrating.execute("DELETE FROM cluster.identity")  # or its clones would be taken for copies, which they are
        # Connections would block the clones.
        conn.execute("ALTER DATABASE template_unfinished ALLOW_CONNECTIONS false")
        conn.execute(f"ALTER DATABASE template_unfinished RENAME TO {TEMPLATE}")

    def _record_identity(self, name: str) -> None:
        """As migrate would."""
        from cluster.identity import record_identity

        with psycopg.connect(self.postgres.url(name), autocommit=True) as conn:
            record_identity(conn)

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(), autocommit=True)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with (self.folder / "template.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def make_run_folder() -> Path:
    """Passable for the server's user, which is not ours when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="jobcluster-tests-"))
    folder.chmod(0o711)
    return folder


def start_watcher(folder: Path, bin_dir: Path | None) -> subprocess.Popen[bytes]:
    """A process that ends the server when the end of the pipe in our hands closes, for whatever reason."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.watcher", str(folder), *([str(bin_dir)] if bin_dir else [])],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C goes to the whole group, and the watcher has to outlive us.
        start_new_session=True,
    )
