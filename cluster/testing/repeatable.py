"""Finds jobs that must not be run twice: every job may be, for a node can die after the work and before it has said so."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from inspect import isawaitable
from typing import Any

import psycopg
from psycopg import sql

from cluster import tables
from cluster.errors import ClusterError
from cluster.job import Job, definition
from cluster.testing.attempt import complete
from cluster.testing.contents import Saved, differences, rows_of, steady, tables_of
from cluster.testing.interruption import Killed, Watch, watched


def assert_repeatable(job: Job, database: str, *, ignore: Collection[str] = (), most: int = 100) -> None:
    """AssertionError: performed once more after it was killed, the job leaves another database than performed once.

    It is performed twice from the same state, to learn which values are times or chance; then killed before each of its statements
    in turn and after its end, each time performed again and compared. In the end the database is as it was. database: the URL of a
    test's own, which the job writes to, and where what it needs is committed. ignore: names of columns, of tables, or table.column,
    that may differ. most: statements, each of which costs two runs. Only the database is compared, and only statements of psycopg 3
    are seen: ClusterError, if the job has written without any. What it raises when it is performed once is raised.
    """
    if not isinstance(database, str):
        raise ClusterError(
            "assert_repeatable takes a URL: connections of the job itself are cut, and what it needs is committed"
        )
    with psycopg.connect(database, autocommit=True, client_encoding="utf-8") as connection:
        row = job if job.id is not None else job.perform_later(connection)
        try:
            _compare(row, connection, ignore, most)
        finally:
            if row is not job:
                table = tables.identifier(definition(type(row)).table)
                connection.execute(sql.SQL("DELETE FROM {} WHERE id = %s").format(table), [row.id])


def _compare(job: Job, connection: psycopg.Connection[Any], ignore: Collection[str], most: int) -> None:
    compared, saved = tables_of(connection, ignore), Saved(connection)
    before = rows_of(connection, compared)
    try:
        watch = Watch()
        _perform(job, 1, watch)
        once = rows_of(connection, compared)
        statements = watch.statements
        if once != before and not statements:
            raise ClusterError(
                f"{type(job).__name__} writes by another library than psycopg 3, or from a thread of its own: none of its"
                " statements was seen, so it can't be killed at them"
            )
        if len(statements) > most:
            raise ClusterError(f"{type(job).__name__} sends {len(statements)} statements, more than most={most}")
        saved.put_back()
        _perform(job, 1, Watch())
        compared = steady(compared, once, rows_of(connection, compared))
        once = rows_of(connection, compared)
        found = []
        for last in range(len(statements) + 1):
            saved.put_back()
            _kill(job, last if last < len(statements) else None)
            saved.put_back_sequences()
            lines = _again(job, connection, compared, once)
            if lines:
                where = (
                    f"before statement {last + 1}, {statements[last]:.80}"
                    if last < len(statements)
                    else "after its end"
                )
                found.append("\n  ".join([f"killed {where}:", *lines]))
        if found:
            raise AssertionError(
                f"{type(job).__name__} is not repeatable: killed and performed again, it leaves another database than once\n"
                + "\n".join(found)
            )
    finally:
        saved.put_back()


def _kill(job: Job, last: int | None) -> None:
    """last: statements that it may send; None: all, and it dies before anybody hears of it."""
    try:
        _perform(job, 1, Watch(last))
    except Killed:
        pass
    except Exception:
        if last is None:
            raise


def _again(job: Job, connection: psycopg.Connection[Any], compared: Any, once: Any) -> list[str]:
    try:
        _perform(job, 2, Watch())
    except Exception as error:  # noqa: BLE001 - shown
        return [f"it fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}"]
    return differences(once, rows_of(connection, compared))


def _perform(job: Job, attempt: int, watch: Watch) -> None:
    """Without the hooks of a failure: who is killed has none."""
    performed = copy(job)
    performed.attempt = attempt

    async def in_loop() -> None:
        for step in _steps(performed):
            result = step()
            if isawaitable(result):
                await result

    with watched(watch):
        if definition(type(job)).is_async:
            complete(in_loop)
        else:
            for step in _steps(performed):
                step()


def _steps(job: Any) -> list[Any]:  # Any: perform is defined by the subclasses
    return [job.before_perform, job.perform, job.after_success, job.after_perform]
