"""Where the databases of a test run are: a template, migrated once a run, and a copy for each process of the run.

The server is an embedded Postgres, which the run starts and removes, or one that a URL names. For the pytest plugin.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cluster.errors import ClusterError
from cluster.identity import record_identity
from cluster.job import Job
from cluster.migrating import migrate
from cluster.pytest_plugin import folder_of_run

if TYPE_CHECKING:
    from cluster.embedded import EmbeddedPostgres


class TestServer:
    """Of one run, whose processes have its folder in common. folder: made when it is needed. url: None: an embedded Postgres."""

    __test__ = False  # for pytest, which collects what is called so

    def __init__(self, folder: Path, url: str | None) -> None:
        self._folder = folder
        self._url = url
        self._embedded: EmbeddedPostgres | None = None

    @contextmanager
    def database(self, name: str, job_classes: Sequence[type[Job]], prepare: Callable[[str], object]) -> Iterator[str]:
        """The URL of a copy of the template, dropped afterwards. prepare: makes the application's own tables, in the template."""
        with self._one_at_a_time():
            self._start()
            self._make_template(job_classes, prepare)
        database = f"{self._run}_{name}"
        self._admin("DROP DATABASE IF EXISTS {0} WITH (FORCE)", database)
        self._admin("CREATE DATABASE {0} TEMPLATE {1}", database, self._template)
        try:
            with psycopg.connect(self._url_of(database), autocommit=True) as connection:
                record_identity(connection)
            yield self._url_of(database)
        finally:
            with suppress(psycopg.Error):  # with the server, if that was stopped
                self._admin("DROP DATABASE IF EXISTS {0} WITH (FORCE)", database)

    def end(self) -> None:
        """Of the run: by the process that began it, once all others have ended."""
        if not self._folder.exists():
            return
        if self._url is None:
            self._server().stop("immediate")
        else:
            self._admin("DROP DATABASE IF EXISTS {0} WITH (FORCE)", self._template)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _run(self) -> str:
        return self._folder.name.replace("-", "_")

    @property
    def _template(self) -> str:
        return f"{self._run}_template"

    def _start(self) -> None:
        if self._url is None:
            remove_left_behind()
            self._server().start()

    def _make_template(self, job_classes: Sequence[type[Job]], prepare: Callable[[str], object]) -> None:
        """Renamed last: what fails leaves none."""
        made = self._folder / "template"
        if made.exists():
            return
        unfinished = f"{self._template}_new"
        self._admin("DROP DATABASE IF EXISTS {0} WITH (FORCE)", unfinished)
        self._admin("CREATE DATABASE {0} TEMPLATE template0", unfinished)
        url = self._url_of(unfinished)
        prepare(url)
        migrate(url, job_classes)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "DELETE FROM cluster.identity"
            )  # or its copies would be taken for copies, which they are
        self._admin("DROP DATABASE IF EXISTS {0} WITH (FORCE)", self._template)
        self._admin(_DISCONNECT, unfinished)
        self._admin("ALTER DATABASE {0} RENAME TO {1}", unfinished, self._template)
        made.touch()

    def _server(self) -> EmbeddedPostgres:
        if self._embedded is None:
            from cluster.embedded import EmbeddedPostgres

            try:
                self._embedded = EmbeddedPostgres(self._folder / "data", fast=True)
            except ClusterError as error:
                raise ClusterError(
                    f"{error}; or name a server: CLUSTER_DATABASE_URL, --cluster-database-url"
                ) from error
        return self._embedded

    def _url_of(self, database: str) -> str:
        return self._server().url(database) if self._url is None else make_conninfo(self._url, dbname=database)

    def _admin(self, statement: str, *names: str) -> None:
        url = self._server().url() if self._url is None else self._url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names), name=sql.Literal(names[0])))

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        self._folder.mkdir(
            mode=0o711, exist_ok=True
        )  # passable for the server's user, which is not ours when we are root
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


_DISCONNECT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {name}"
"""What `prepare` has left open, such as an engine's pool, would be in the way of copies."""


def remove_left_behind() -> None:
    """Servers of runs that were killed."""
    pattern = folder_of_run("*")
    for folder in pattern.parent.glob(pattern.name):
        with suppress(ProcessLookupError, ValueError, PermissionError):
            os.kill(int(folder.name.rpartition("-")[2]), 0)
            continue
        with suppress(ClusterError):
            TestServer(folder, None).end()


_KEPT = {f"cluster.{name}" for name in ("identity", "job_types", "migrations", "schedules", "turns")}


class Cleaner:
    """Empties what a test has filled. Tables that had rows before the first test, such as an application's reference data, stay as
    they are; in schema `cluster` pauses and overrides end, and schedules become as they were."""

    def __init__(self, url: str, job_classes: Sequence[type[Job]]) -> None:
        self._url = url
        self._job_classes = job_classes
        with self._connected() as connection:
            self._kept = _KEPT | set(self._filled(connection))
            self._schedules = connection.execute(_SCHEDULES).fetchone()

    def clean(self) -> None:
        """ClusterError: the test has left a transaction open that is in the way."""
        from cluster.testing.travel import forget_travels

        with self._connected() as connection:
            try:
                filled = [name for name in self._filled(connection) if name not in self._kept]
                if filled:
                    connection.execute(f"TRUNCATE {', '.join(filled)} RESTART IDENTITY".encode())
                connection.execute(_RESET)
                if connection.execute(_SCHEDULES).fetchone() != self._schedules:
                    connection.execute("DELETE FROM cluster.schedules")
                    migrate(connection, self._job_classes)
                    self._schedules = connection.execute(_SCHEDULES).fetchone()
            except psycopg.errors.LockNotAvailable as error:
                raise ClusterError(
                    f"the test has left a transaction open, and its database can't be emptied: {_open(connection)}; close it"
                ) from error
            forget_travels(connection)

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._url, autocommit=True, options="-c lock_timeout=2s") as connection:
            yield connection

    def _filled(self, connection: psycopg.Connection[Any]) -> list[str]:
        """Tables that have rows."""
        names = [name for (name,) in connection.execute(_TABLES).fetchall()]
        looks = [sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(name, sql.SQL(name)) for name in names]
        return [name for (name,) in connection.execute(sql.SQL(" UNION ALL ").join(looks)).fetchall()]


_TABLES = r"""
SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'"""
_RESET = """
UPDATE cluster.job_types SET paused_at = NULL, paused_reason = NULL, max_concurrency_override = NULL
WHERE num_nonnulls(paused_at, paused_reason, max_concurrency_override) > 0"""
_SCHEDULES = "SELECT md5(coalesce(string_agg(s::text, ' ' ORDER BY name), '')) FROM cluster.schedules AS s"


def _open(connection: psycopg.Connection[Any]) -> str:
    rows = connection.execute(
        "SELECT format('process %s, which said %s', pid, left(query, 80)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
    ).fetchall()
    return "; ".join(text for (text,) in rows)
