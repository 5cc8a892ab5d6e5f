"""What a node's role must be allowed to do, and the check of that before it starts. Reads catalogs only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import Connection, sql

from cluster.errors import SchemaMisfitError
from cluster.job import Job, definition
from cluster.tables import identifier

OWN_TABLES = {
    "cluster.nodes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cluster.prune_walks": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cluster.job_types": ("SELECT",),
    "cluster.queues": ("SELECT",),
    "cluster.migrations": ("SELECT",),
}
WRITTEN_COLUMNS = (
    "status", "run_at", "attempts_count", "crashes_count", "last_error", "locked_at", "locked_by", "started_at", "finished_at",
    "updated_at",
)  # fmt: skip
"""Of a job table, that nodes write: a grant on these columns is as good as one on the table."""


def check_privileges(connection: Connection[Any], job_classes: Iterable[type[Job]]) -> None:
    """SchemaMisfitError: the connection's role lacks what a node needs; names role, table and privilege."""
    missing = [*_missing_of_own(connection)]
    for job_class in job_classes:
        missing += _missing_of_table(connection, job_class)
    if missing:
        row = connection.execute("SELECT current_user").fetchone()
        role = row[0] if row is not None else ""
        grants = "; ".join(f"GRANT {privilege} ON {table} TO {role}" for table, privilege in missing)
        lacks = ", ".join(f"{privilege} on {table}" for table, privilege in missing)
        raise SchemaMisfitError(f"role {role} lacks {lacks}, which a node needs: {grants}")


def _missing_of_own(connection: Connection[Any]) -> Iterable[tuple[str, str]]:
    if not _may(connection, "SELECT has_schema_privilege('cluster', 'USAGE')"):
        yield "SCHEMA cluster", "USAGE"
        return
    for table, privileges in OWN_TABLES.items():
        for privilege in privileges:
            if not _may(connection, "SELECT has_table_privilege(%s, %s)", [table, privilege]):
                yield table, privilege


def _missing_of_table(connection: Connection[Any], job_class: type[Job]) -> Iterable[tuple[str, str]]:
    name = identifier(definition(job_class).table).as_string(connection)
    shown = definition(job_class).table
    if not _may(connection, "SELECT has_table_privilege(%s, 'SELECT')", [name]):
        yield shown, "SELECT"
    columns = [*WRITTEN_COLUMNS, *([] if job_class.concurrency_key is None else ["parked"])]
    written = sql.SQL(
        "SELECT bool_and(has_column_privilege(%s, column_name, 'UPDATE')) FROM unnest(%s::text[]) AS column_name"
    )
    if connection.execute(written, [name, columns]).fetchone() != (True,):
        yield shown, "UPDATE"
    deletes = job_class.retention is not None or job_class.retention_failed is not None
    if deletes and not _may(connection, "SELECT has_table_privilege(%s, 'DELETE')", [name]):
        yield shown, "DELETE"


def _may(connection: Connection[Any], question: str, parameters: list[str] | None = None) -> bool:
    return connection.execute(question.encode(), parameters).fetchone() == (True,)
