"""What a node's role must be allowed to do, and the check of that before it starts: a query of the catalogs for all classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from psycopg import Connection, sql

from cluster.errors import SchemaMisfitError
from cluster.job import Job, definition
from cluster.job_checks import STANDARD_COLUMNS
from cluster.tables import identifier

OWN_TABLES = {
    "nodes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "drains": ("SELECT", "INSERT", "DELETE"),
    "prune_walks": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "minutes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "turns": ("SELECT", "UPDATE"),
    "schedule_service": ("SELECT", "UPDATE"),
    "schedules": ("SELECT", "UPDATE"),
    "schedule_runs": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "failures": ("SELECT", "INSERT", "DELETE"),
    "job_types": ("SELECT",),
    "queues": ("SELECT",),
    "migrations": ("SELECT",),
    "identity": ("SELECT",),
}
"""Of schema cluster."""
NEVER_READ = {"started_at", "updated_at"}
"""Standard columns of a job table that nodes only write."""
VERSION = "xmin"
"""The system column that a look reads: grants on single columns must name it too."""
WRITTEN_COLUMNS = (
    "status", "run_at", "attempts_count", "crashes_count", "last_error", "locked_at", "locked_by", "started_at", "finished_at",
    "updated_at",
)  # fmt: skip
"""Of a job table, that nodes write. A grant on the columns that a node reads or writes is as good as one on the table."""


class _Need(NamedTuple):
    """One privilege. columns: those of the table that it must hold for, if it does not for all; empty: it must for all."""

    table: sql.Identifier
    privilege: str
    columns: tuple[str, ...] = ()


def check_privileges(connection: Connection[Any], job_classes: Sequence[type[Job]]) -> None:
    """SchemaMisfitError: the connection's role lacks what a node needs; names role, privilege and table, or columns of it.

    Also: row-level security hides rows from it.
    """
    lacking = [*_lacking(connection, job_classes)]
    if lacking:
        row = connection.execute("SELECT current_user").fetchone()
        role = sql.Identifier("" if row is None else row[0]).as_string(connection)
        lacks = ", ".join(lacking)
        grants = "; ".join(f"GRANT {what} TO {role}" for what in lacking)
        raise SchemaMisfitError(f"role {role} lacks {lacks}, which a node needs: {grants}")
    _check_row_security(connection, job_classes)


def quoted_table(job_class: type[Job]) -> str:
    """Its name, in SQL."""
    return identifier(definition(job_class).table).as_string(None)


def _check_row_security(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> None:
    """A job that is hidden from its node would never run, and one that runs would be taken for lost."""
    own = [sql.Identifier("cluster", table).as_string(None) for table in OWN_TABLES]
    tables = [*own, *map(quoted_table, job_classes)]
    rows = connection.execute(
        "SELECT quote_ident(current_user), name FROM unnest(%s::text[]) AS name WHERE row_security_active(name)",
        [tables],
    )
    for role, table in rows.fetchall():
        raise SchemaMisfitError(
            f"row-level security of table {table} hides rows from role {role}, and a node must see them all: "
            f"ALTER ROLE {role} BYPASSRLS, or ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"
        )


def _lacking(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> Iterator[str]:
    """As GRANT has it: UPDATE (status) ON jobs."""
    if connection.execute("SELECT has_schema_privilege('cluster', 'USAGE')").fetchone() != (True,):
        yield "USAGE ON SCHEMA cluster"
        return
    needs = [*_needs_of_schema(), *(need for job_class in job_classes for need in _needs_of_table(job_class))]
    tables = [need.table.as_string(connection) for need in needs]
    columns = ["\n".join(need.columns) for need in needs]
    for place, missing in connection.execute(_LACKING, [tables, [need.privilege for need in needs], columns]):
        need = needs[place - 1]
        some = len(missing or ()) < len(need.columns)
        named = f" ({', '.join(sql.Identifier(name).as_string(connection) for name in missing)})" if some else ""
        yield f"{need.privilege}{named} ON {tables[place - 1]}"


_LACKING = """
SELECT place, array_agg(missing ORDER BY missing) FILTER (WHERE missing IS NOT NULL)
FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS need (name, privilege, columns, place)
LEFT JOIN LATERAL string_to_table(nullif(columns, ''), E'\\n') AS missing ON true
WHERE NOT has_table_privilege(name, privilege) AND NOT coalesce(has_column_privilege(name, missing, privilege), false)
GROUP BY place ORDER BY place
"""


def _needs_of_schema() -> Iterator[_Need]:
    for table, privileges in OWN_TABLES.items():
        for privilege in privileges:
            yield _Need(sql.Identifier("cluster", table), privilege)


def _needs_of_table(job_class: type[Job]) -> Iterator[_Need]:
    table = identifier(definition(job_class).table)
    parked = () if job_class.concurrency_key is None else ("parked",)
    read = dict.fromkeys([*STANDARD_COLUMNS, *definition(job_class).column_names, *parked, VERSION])
    yield _Need(table, "SELECT", tuple(name for name in read if name not in NEVER_READ))
    yield _Need(table, "UPDATE", (*WRITTEN_COLUMNS, *parked))
    if job_class.retention is not None or job_class.retention_failed is not None:
        yield _Need(table, "DELETE")
