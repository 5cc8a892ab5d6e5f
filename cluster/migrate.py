"""Brings schema `cluster` and the job tables to what this version needs. Nodes never call this: they check.

Every migration runs in a transaction of its own under an advisory lock, so any number of deploys may migrate at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg
from psycopg import Connection, errors, sql

from cluster import locks, statements, tables
from cluster.errors import SchemaMisfitError
from cluster.job import Job, definition
from cluster.neighbours import check_neighbours

LOCK_TIMEOUT = "5s"
"""A migration that waits longer for a table's lock would make everyone else queue behind it."""


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


def migrate_schema(connection: Connection[Any]) -> list[str]:
    """Applies the missing migrations of schema `cluster`; returns their names. connection: in autocommit.

    SchemaMisfitError: others could make code of theirs run here; see `neighbours`."""
    check_neighbours(connection)
    applied = []
    for migration in known_migrations():
        with connection.transaction():
            _lock(connection)
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


def migrate_jobs(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> list[str]:
    """Adds the missing tables, columns and defaults of these classes, one transaction per class; returns the SQL that ran.

    SchemaMisfitError: a statement can't run on the rows that are there, or an existing column has another type.
    """
    done: list[str] = []
    for job_class in job_classes:
        with connection.transaction():
            _lock(connection)
            done += _make_fit(connection, job_class)
    return done


def _make_fit(connection: Connection[Any], job_class: type[Job]) -> Iterator[str]:
    """In a transaction, which is to be rolled back if it can't."""
    try:
        for change in tables.changes(connection, job_class):
            connection.execute(change)
            yield change.as_string(connection)
    except (psycopg.ProgrammingError, psycopg.IntegrityError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise SchemaMisfitError(
            f"table {definition(job_class).table} of {job_class.__name__}: {error.diag.message_primary}{_advice(error)}"
        ) from error
    problems = tables.misfits(connection, [job_class])
    if problems:
        raise SchemaMisfitError(f"{'; '.join(problems)}: migrate only adds; change the column or the class")


def _advice(error: psycopg.Error) -> str:
    if isinstance(error, errors.NotNullViolation):
        return ": the table has rows; give the new field a default, or make it Optional"
    hint = error.diag.message_hint
    return f": {hint}" if hint else ""


def planned_changes(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> list[str]:
    """What migrate would run, as SQL to read or to keep in one's own migrations. Changes nothing.

    SchemaMisfitError: what migrate would refuse.
    """
    planned: list[str] = []
    with connection.transaction(force_rollback=True):
        present = _applied(connection) if _has_bookkeeping(connection) else {}
        if not _has_bookkeeping(connection):
            planned.append(_BOOKKEEPING.strip())
        planned += [_with_record(migration) for migration in known_migrations() if migration.version not in present]
        migrate_schema(connection)
        for job_class in job_classes:
            planned += _make_fit(connection, job_class)
    return planned


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


def _lock(connection: Connection[Any]) -> None:
    """One migration at a time. The wait for this lock is not what lock_timeout is for, so it is set after it."""
    connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [locks.MIGRATION])
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
