"""`cluster migrate` as a function: the command's own code, for tests and start scripts. Says what it did in words, not in SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from cluster import identity, tables
from cluster.blockers import Say, quiet
from cluster.errors import ClusterError
from cluster.job import Job, definition
from cluster.migration import migrate_jobs, migrate_schema
from cluster.schedule_rows import left_schedules

if TYPE_CHECKING:
    from psycopg import Connection


def migrate(
    database: Connection[Any] | str | None = None, jobs: Iterable[type[Job] | str] | None = None, *, say: Say = quiet
) -> list[str]:
    """Creates or completes schema `cluster` and the tables of the jobs; returns what it did, a sentence each. Only adds.

    database: a psycopg connection that is in no transaction, or a URL; None: that of `cluster.configure` or the settings.
    jobs: classes, and names of modules and packages that have some; None: those of CLUSTER_JOBS, or package `jobs`.
    say: told meanwhile whom it waits for. ClusterError: it can't go on; what it did before stays, and is in the error's notes.
    """
    classes, modules = _classes(jobs)
    done: list[str] = []
    with _connected(database) as connection:
        try:
            done.extend(steps(connection, classes, modules, say))
        except ClusterError as error:
            for sentence in done:
                error.add_note(f"done before: {sentence}")
            raise
    return done


def steps(
    connection: Connection[Any],
    job_classes: Sequence[type[Job]],
    modules: Sequence[str],
    say: Say,
    *,
    adopt: bool = False,
) -> Iterator[str]:
    """Migrates, and gives each sentence once that is committed.

    connection: in autocommit. modules: see left_schedules. adopt: see identity.
    """
    connection.execute("SET default_transaction_read_only = off")  # a default of the role's, not a refusal
    yield from (f"schema cluster: {name}" for name in migrate_schema(connection, say))
    if adopt and identity.adopt(connection):
        yield "this database is no copy any more: nodes may run its jobs"
    elif copied := identity.difference(connection):
        say(f"nodes will not start: {copied}")
    for left in left_schedules(connection, modules, job_classes):  # first: a new name for a class must not run twice
        if not left.is_served:
            connection.execute(left.removal)
        yield left.sentence()
    for job_class in job_classes:
        table = definition(job_class).table
        is_new = tables.existing_columns(connection, table) is None
        statements = migrate_jobs(connection, [job_class], say)
        yield from [f"table {table}: created"] if is_new else _sentences(table, statements)


_COLUMN = re.compile(
    r'ALTER TABLE \S+ (?P<what>ADD|ALTER) COLUMN "(?P<column>[^"]*)"(?: SET DEFAULT (?P<default>.*))?', re.DOTALL
)


def _sentences(table: str, statements: list[str]) -> list[str]:
    """What `migrate_jobs` ran on a table that was there, in words."""
    said = []
    for statement in statements:
        if match := _COLUMN.match(statement):
            what = f"default is now {match['default']}" if match["what"] == "ALTER" else "added"
            said.append(f"table {table}: column {match['column']}: {what}")
        elif "cluster.schedules" in statement:
            said.append(f"table {table}: schedules updated")
        elif "cluster.job_types" in statement:
            said.append(f"table {table}: options updated")
        else:
            said.append(f"table {table}: completed")
    return list(dict.fromkeys(said))


def _classes(jobs: Iterable[type[Job] | str] | None) -> tuple[list[type[Job]], list[str]]:
    """The classes, and the modules that were looked into for them."""
    from cluster.discovery import import_jobs

    if isinstance(jobs, str):
        raise ClusterError(f'jobs is a list, such as ["{jobs}"]')
    if jobs is None:
        from cluster.settings import load_settings

        jobs = load_settings().jobs
    given = list(jobs)
    modules = [one for one in given if isinstance(one, str)]
    return [one for one in given if not isinstance(one, str)] + (import_jobs(modules) if modules else []), modules


@contextmanager
def _connected(database: Connection[Any] | str | None) -> Iterator[Connection[Any]]:
    """In autocommit; one of the caller's is as it was afterwards."""
    if not isinstance(database, psycopg.Connection):
        from cluster.configuration import default_database_url

        url = default_database_url() if database is None else database
        with psycopg.connect(url, autocommit=True, client_encoding="utf-8", application_name="cluster") as connection:
            yield connection
        return
    if database.info.transaction_status != TransactionStatus.IDLE:
        raise ClusterError("the connection is in a transaction: commit first, for migrate has transactions of its own")
    autocommit = database.autocommit
    database.autocommit = True
    try:
        yield database
    finally:
        if not database.closed:
            database.autocommit = autocommit
