"""From the schedules that a class declares to their rows: the SQL that `migrate` and `schedule reload` run.

Rows of source `code` belong to the class, but for what stops them: that is the operators'. Rows of source `user` are left alone.
When a class is gone its rows go as well: see `left_schedules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from psycopg import Connection, sql
from psycopg.types.json import Jsonb
from pydantic_core import to_jsonable_python

from cluster.errors import ClusterError, JobArgumentError, SchemaMisfitError
from cluster.job import Job, definition
from cluster.schedule import Schedule, named
from cluster.tables import identifier

_COLUMNS = (
    "job_values", "cron", "every", "time_zone", "starts_at", "ends_at", "jitter", "overlap", "misfire", "expect_within", "on_error",
    "run_once", "declared_in",
)  # fmt: skip


def schedule_changes(
    connection: Connection[Any], job_class: type[Job], table: str, *, has_rows: bool
) -> Iterator[sql.Composed]:
    """What makes the rows those of the class. table: its name in SQL. has_rows: there are schedules at all yet.

    SchemaMisfitError: a field refuses its value, or a user has a schedule of that name.
    """
    declared = {
        name: _row(job_class, name, schedule)
        for name, schedule in named(job_class.__name__, job_class.schedule).items()
    }
    present = _present(connection, table, list(declared)) if has_rows else {}
    for name, (ours, *_) in present.items():
        if ours and name not in declared:
            yield sql.SQL("DELETE FROM cluster.schedules WHERE name = {} AND source = 'code'").format(name)
    for name, row in declared.items():
        ours, is_here, *values = present.get(name, (None, False))
        if ours is False:
            raise SchemaMisfitError(
                f"schedule {name} of {job_class.__name__} is there already, and not as one of this class: rename one of them"
            )
        if ours is None:
            yield sql.SQL(
                "INSERT INTO cluster.schedules (name, job_table, source, {}) VALUES ({}, {}::regclass, 'code', {})"
            ).format(
                sql.SQL(", ").join(map(sql.Identifier, _COLUMNS)),
                name,
                table,
                sql.SQL(", ").join(map(sql.Literal, _literals(row))),
            )
        elif not is_here or values != list(row.values()):
            changed: list[tuple[str, Any]] = [
                (column, value)
                for column, value, now in zip(_COLUMNS, _literals(row), values, strict=True)
                if row[column] != now
            ]
            assignments = [sql.SQL("{} = {}").format(sql.Identifier(column), value) for column, value in changed]
            if not is_here:  # its table was dropped and made anew
                assignments.append(sql.SQL("job_table = {}::regclass").format(table))
            yield sql.SQL("UPDATE cluster.schedules SET {} WHERE name = {}").format(
                sql.SQL(", ").join(assignments), name
            )


class Left(NamedTuple):
    """A schedule of the code whose class is nowhere among those that were found, though its module was among those looked into."""

    name: str
    module: str
    is_served: bool
    """By a node that has none of the classes that were found: they may be another application's, whose module has the same name."""

    @property
    def removal(self) -> sql.Composed:
        return sql.SQL("DELETE FROM cluster.schedules WHERE name = {} AND source = 'code'").format(self.name)

    def sentence(self) -> str:
        if self.is_served:
            return (
                f"schedule {self.name}: left as it is, though no class in {self.module} declares it here:"
                f" other nodes have such a class. If it is gone for good: {self.removal.as_string(None)}"
            )
        return f"schedule {self.name}: removed, since no class in {self.module} declares it any more; its history stays"


def left_schedules(connection: Connection[Any], modules: Sequence[str], job_classes: Sequence[type[Job]]) -> list[Left]:
    """modules: in which these classes were found, with the modules below them. Schedules of other modules are left alone."""
    if connection.execute("SELECT to_regclass('cluster.schedules')").fetchone() == (None,):
        return []
    query = """
        SELECT s.name, s.declared_in, EXISTS (
            SELECT FROM cluster.nodes AS n JOIN cluster.job_types AS t ON t.name = ANY (n.jobs)
            WHERE t.job_table = s.job_table AND n.state IN ('live', 'draining') AND NOT n.jobs && %(classes)s::text[])
        FROM cluster.schedules AS s
        WHERE s.source = 'code'
          AND NOT EXISTS (SELECT FROM unnest(%(tables)s::text[]) AS t WHERE to_regclass(t) = s.job_table)
          AND EXISTS (SELECT FROM unnest(%(modules)s::text[]) AS m WHERE s.declared_in = m OR starts_with(s.declared_in, m || '.'))
        ORDER BY s.name"""
    parameters = {
        "classes": [job_class.__name__ for job_class in job_classes],
        "tables": [identifier(definition(job_class).table).as_string(connection) for job_class in job_classes],
        "modules": list(modules),
    }
    return [Left(*row) for row in connection.execute(query, parameters)]


def _row(job_class: type[Job], name: str, schedule: Schedule) -> dict[str, Any]:
    """The columns that the class decides, in order."""
    row = {column: getattr(schedule, column, None) for column in _COLUMNS[1:-1]}
    return {"job_values": _job_values(job_class, name, schedule), **row, "declared_in": job_class.__module__}


def _job_values(job_class: type[Job], name: str, schedule: Schedule) -> dict[str, Any]:
    """What the class's validators accept. Fields whose default only Python can make get it now."""
    own = {key: value for key, value in schedule.values.items() if key not in {"queue", "priority"}}
    try:
        job = job_class(**own)
        values = {
            column.name: getattr(job, column.name)
            for column in definition(job_class).columns
            if column.name in own or column.has_factory
        }
        row: dict[str, Any] = to_jsonable_python({**schedule.values, **values})
        return row
    except (JobArgumentError, ValueError) as error:
        raise SchemaMisfitError(f"schedule {name}: {error}") from error


def _literals(row: dict[str, Any]) -> list[Any]:
    return [Jsonb(value) if column == "job_values" else value for column, value in row.items()]


def _present(connection: Connection[Any], table: str, names: list[str]) -> dict[str, tuple[Any, ...]]:
    """Of this table, and of these names: whether it is the class's, whether its table is this one, and the columns."""
    columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
    query = sql.SQL(
        "SELECT name, source = 'code' AND (job_table = to_regclass({table})"
        " OR NOT EXISTS (SELECT FROM pg_class WHERE oid = job_table)), job_table IS NOT DISTINCT FROM to_regclass({table}), "
        "{columns}"
        " FROM cluster.schedules WHERE (job_table = to_regclass({table}) AND source = 'code') OR name = ANY ({names})"
    ).format(table=table, columns=columns, names=names)
    return {row[0]: row[1:] for row in connection.execute(query).fetchall()}


def reload_schedules(
    connection: Connection[Any], job_classes: Sequence[type[Job]], modules: Sequence[str] = ()
) -> tuple[int, int]:
    """Makes the rows those of these classes, and lets what has stopped go on. Returns how many changed, and how many go on.

    modules: see left_schedules.

    ClusterError: another reload is running; one that has not ended after a minute is none any more.
    """
    taken = connection.execute(
        "UPDATE cluster.schedule_service SET reloading_since = now()"
        " WHERE reloading_since IS NULL OR reloading_since < now() - interval '1 minute'"
    )
    if not taken.rowcount:
        raise ClusterError("another reload is running: wait for its end")
    changed = 0
    try:
        with connection.transaction():
            for left in left_schedules(connection, modules, job_classes):
                if not left.is_served:
                    changed += connection.execute(left.removal).rowcount
            for job_class in job_classes:
                table = identifier(definition(job_class).table).as_string(connection)
                for statement in list(schedule_changes(connection, job_class, table, has_rows=True)):
                    connection.execute(statement)
                    changed += 1
            row = connection.execute("SELECT cluster.reload_schedules()").fetchone()
        assert row is not None
        return changed, row[0]
    finally:
        connection.execute("UPDATE cluster.schedule_service SET reloading_since = NULL, reloaded_at = now()")
