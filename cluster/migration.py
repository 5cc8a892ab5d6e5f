"""Brings schema `cluster` and the job tables to what this version needs. Nodes never call this: they check.

Every migration runs in a transaction of its own under an advisory lock, so any number of deploys may migrate at once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg
from psycopg import Connection, errors, sql

from cluster import locks, statements, tables
from cluster.blockers import Blockers, Say, holder_of_lock, naming_blockers, quiet
from cluster.errors import ClusterError, SchemaMisfitError
from cluster.identity import is_recorded, record_identity, record_statement
from cluster.job import Job, definition
from cluster.neighbours import check_neighbours
from cluster.plan import plan

LOCK_TIMEOUT = "5s"
"""A migration that waits longer for a table's lock would make everyone else queue behind it."""
POLL = 0.1
"""Seconds between two tries to be the one migration."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    kind: str
    """expand: the version before runs on it. contract: it does not."""
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@cache
def known_migrations() -> tuple[Migration, ...]:
    """All migrations of this version, in order."""
    found = []
    for file_name, text in statements.migrations().items():
        version, name = file_name.removesuffix(".sql").split("_", 1)
        kind = text.split(":", 1)[0].removeprefix("--").strip()
        found.append(Migration(int(version), name, kind, text))
    return tuple(found)


def migrate_schema(connection: Connection[Any], say: Say = quiet) -> list[str]:
    """Applies the missing migrations of schema `cluster`; returns their names. connection: in autocommit.

    say: told whom it waits for.
    SchemaMisfitError: this server can't have it, the role may not make it, or others could make code of theirs run here.
    """
    check_server(connection)
    with naming_blockers(connection, say) as blockers, _explained(connection, "schema cluster", blockers):
        check_neighbours(connection)
        applied = _apply(connection, say)
        record_identity(connection)
    return applied


def _apply(connection: Connection[Any], say: Say) -> list[str]:
    applied = []
    for migration in known_migrations():
        with _turn(connection, say):
            connection.execute(_BOOKKEEPING)
            _refuse_changed_history(_applied(connection))
            if migration.version not in _applied(connection):
                connection.execute(migration.text.encode())
                connection.execute(
                    "INSERT INTO cluster.migrations (version, name, kind, checksum) VALUES (%s, %s, %s, %s)",
                    [migration.version, migration.name, migration.kind, migration.checksum],
                )
                applied.append(f"{migration.version:04}_{migration.name}")
    return applied


_BOOKKEEPING = """
DO $$ BEGIN
    IF to_regclass('cluster.migrations') IS NULL THEN
        IF to_regnamespace('cluster') IS NULL THEN
            CREATE SCHEMA cluster;  -- not with IF NOT EXISTS, which needs the privilege on the database even if it is there
        END IF;
        CREATE TABLE cluster.migrations (
            version integer PRIMARY KEY, name text NOT NULL, kind text NOT NULL, checksum text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
    END IF;
END $$
"""


def migrate_jobs(connection: Connection[Any], job_classes: Iterable[type[Job]], say: Say = quiet) -> list[str]:
    """Adds the missing tables, columns, indexes and defaults of these classes; returns the SQL that ran. connection: in autocommit.

    One transaction per class, but for what would lock a large table for long: see `plan`. say: told whom it waits for.
    SchemaMisfitError: a statement can't run on the rows that are there, or an existing column has another type.
    """
    done: list[str] = []
    with naming_blockers(connection, say) as blockers:
        for job_class in job_classes:
            with _explained(connection, _place(job_class), blockers):
                done += _migrate_job(connection, job_class, say)
    return done


def _migrate_job(connection: Connection[Any], job_class: type[Job], say: Say) -> Iterator[str]:
    with _turn(connection, say):
        planned = plan(connection, job_class)
        for statement in planned.together:
            connection.execute(statement)
        yield from (statement.as_string(connection) for statement in planned.together)
    if not planned.then:
        return
    _refuse_pooler(connection)
    with _turns(connection, say):
        for statement in plan(connection, job_class).then:  # what another deployment has not done meanwhile
            text = statement.as_string(connection)
            say(f"the table is large, so this goes on beside its jobs: {text}")
            connection.execute(statement)
            yield text


def _place(job_class: type[Job]) -> str:
    return f"table {definition(job_class).table} of {job_class.__name__}"


@contextmanager
def _explained(connection: Connection[Any], place: str, blockers: Blockers | None = None) -> Iterator[None]:
    try:
        yield
    except errors.LockNotAvailable as error:
        whom = blockers.last if blockers is not None and blockers.last else "others"
        raise ClusterError(
            f"{place} was locked for {LOCK_TIMEOUT} by {whom}: run migrate again when it is free"
        ) from error
    except (psycopg.ProgrammingError, psycopg.IntegrityError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise SchemaMisfitError(f"{place}: {error.diag.message_primary}{_advice(connection, error)}") from error


def _advice(connection: Connection[Any], error: psycopg.Error) -> str:
    if isinstance(error, errors.NotNullViolation):
        return ": the table has rows; give the new field a default, or make it Optional"
    if isinstance(error, errors.InsufficientPrivilege):
        database, role = (sql.Identifier(name).as_string() for name in (connection.info.dbname, connection.info.user))
        if error.diag.message_primary == f"permission denied for database {connection.info.dbname}":
            return f": GRANT CREATE ON DATABASE {database} TO {role}; or let the owner of the database migrate"
        return f": role {role} may not do that; let the owner migrate"
    hint = error.diag.message_hint
    return f": {hint}" if hint else ""


def planned_changes(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> list[str]:
    """What migrate would run, as SQL to read or to keep in one's own migrations. Can change nothing, and locks nothing.

    SchemaMisfitError: what migrate would refuse. Of a table that is there before schema cluster is, only its columns are checked.
    """
    planned: list[str] = []
    tables_before: list[str] = []
    with connection.transaction():
        connection.execute("SET TRANSACTION READ ONLY")
        check_server(connection, writes=False)
        check_neighbours(connection)
        present = _applied(connection) if _has_bookkeeping(connection) else {}
        _refuse_changed_history(present)
        if not _has_bookkeeping(connection):
            planned.append(_BOOKKEEPING.strip())
        planned += [_with_record(migration) for migration in known_migrations() if migration.version not in present]
        planned += [] if is_recorded(connection) else [record_statement(connection)]
        for job_class in job_classes:
            with _explained(connection, _place(job_class)):
                statements = plan(connection, job_class, tables_before).statements
            planned += (statement.as_string(connection) for statement in statements)
            tables_before.append(definition(job_class).table)
    return planned


OLDEST_SERVER = 14


def check_server(connection: Connection[Any], *, writes: bool = True) -> None:
    """SchemaMisfitError: the server is too old, or, if that matters, can't write."""
    if connection.info.server_version < OLDEST_SERVER * 10_000:
        version = connection.info.parameter_status("server_version")
        raise SchemaMisfitError(f"the server is Postgres {version}, and the cluster needs {OLDEST_SERVER} or newer")
    if writes and connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
        raise SchemaMisfitError("the server is a standby, which only reads: point CLUSTER_DATABASE_URL at the primary")


def _with_record(migration: Migration) -> str:
    record = sql.SQL("INSERT INTO cluster.migrations (version, name, kind, checksum) VALUES ({}, {}, {}, {})").format(
        *map(sql.Literal, (migration.version, migration.name, migration.kind, migration.checksum))
    )
    return f"{migration.text.strip()}\n{record.as_string(None)}"


def check_schema(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> None:
    """SchemaMisfitError: schema `cluster` or a job table is not one that this version can run on. Changes nothing."""
    if not _has_bookkeeping(connection):
        raise SchemaMisfitError("this database has no schema cluster yet: run `cluster migrate`")
    applied = _applied(connection)
    _refuse_changed_history(applied)
    missing = [migration.name for migration in known_migrations() if migration.version not in applied]
    if missing:
        raise SchemaMisfitError(f"schema cluster lacks migration {missing[0]}: run `cluster migrate`")
    problems = tables.misfits(connection, job_classes)
    if problems:
        raise SchemaMisfitError("; ".join(problems) + ": run `cluster migrate`, or change the class")


def check_complete(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> None:
    """SchemaMisfitError: a job table lacks an index, a trigger or a check of ours. Jobs would miss it only when there are many."""
    names = [definition(job_class).table for job_class in job_classes]
    quoted = [tables.identifier(name).as_string() for name in names]
    with _explained(connection, "job tables"):
        lacking = connection.execute(_LACKING, [names, quoted]).fetchall()
    if lacking:
        first = f"table {lacking[0][0]} lacks what this would bring back: {lacking[0][1]}"
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise SchemaMisfitError(f"{first}{more}: run `cluster migrate`")


_LACKING = r"""
SELECT name, change FROM unnest(%s::text[], %s::text[]) AS t (name, quoted), cluster.job_table_changes(quoted) AS change
WHERE change !~ '^(DROP|UPDATE) | VALIDATE CONSTRAINT | SET \('
"""
"""What nodes can do without: the removal of what is too much, checks of rows that are there, and storage options."""


def _refuse_changed_history(applied: dict[int, tuple[str, str, str]]) -> None:
    known = {migration.version: migration for migration in known_migrations()}
    for version, (name, kind, checksum) in applied.items():
        if version not in known:
            if kind == "contract":
                raise SchemaMisfitError(f"schema cluster is newer than this version ({name}): upgrade jobcluster here")
        elif known[version].checksum != checksum:
            raise SchemaMisfitError(
                f"migration {version:04}_{name} was applied with another text than this version has"
            )


def _applied(connection: Connection[Any]) -> dict[int, tuple[str, str, str]]:
    rows = connection.execute("SELECT version, name, kind, checksum FROM cluster.migrations ORDER BY version")
    return {version: (name, kind, checksum) for version, name, kind, checksum in rows}


def _has_bookkeeping(connection: Connection[Any]) -> bool:
    return connection.execute("SELECT to_regclass('cluster.migrations')").fetchone() != (None,)


@contextmanager
def _turn(connection: Connection[Any], say: Say) -> Iterator[None]:
    """A transaction that is the only migration. Tries again in a new one, since what waits within a transaction may hold a
    snapshot, and CREATE INDEX CONCURRENTLY of another migration waits for that."""
    waiting = _Waiting(connection, say)
    while True:
        with connection.transaction():
            if connection.execute("SELECT pg_try_advisory_xact_lock(%s, 0)", [locks.MIGRATION]).fetchone() == (True,):
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
                yield
                return
        waiting.pause()


@contextmanager
def _turns(connection: Connection[Any], say: Say) -> Iterator[None]:
    """The same over several transactions."""
    waiting = _Waiting(connection, say)
    while connection.execute("SELECT pg_try_advisory_lock(%s, 0)", [locks.MIGRATION]).fetchone() != (True,):
        waiting.pause()
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, 0)", [locks.MIGRATION])


class _Waiting:
    """For the end of another migration, whose owner is named once."""

    def __init__(self, connection: Connection[Any], say: Say) -> None:
        self._connection = connection
        self._say = say
        self._told = False

    def pause(self) -> None:
        time.sleep(POLL)
        holder = None if self._told else holder_of_lock(self._connection, locks.MIGRATION)
        if holder is not None:
            self._say(f"waiting for another migration: {holder}")
            self._told = True


def _refuse_pooler(connection: Connection[Any]) -> None:
    """Its connections are those of others too, so a lock of one's own is not to be had."""
    if connection.execute("SELECT pg_backend_pid()").fetchone() != (connection.info.backend_pid,):
        raise SchemaMisfitError(
            "a large table lacks indexes, and these can't be built through a pooler: set CLUSTER_DIRECT_DATABASE_URL"
        )
