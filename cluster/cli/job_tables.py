"""The job table that a person names: by the class's name, or by its own with or without the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from psycopg import Connection

_JOB_TABLES = """
SELECT t.name, c.oid, c.oid::regclass::text, c.relname::text, n.nspname || '.' || c.relname
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
"""


def find_job_table(connection: Connection[Any], name: str) -> tuple[int, str]:
    """Its oid and its name, as SQL has it. ClusterError: there is none."""
    from cluster.cli.job_classes import did_you_mean

    rows = connection.execute(_JOB_TABLES).fetchall()
    known = {key: (oid, shown) for class_name, oid, shown, *names in rows for key in (class_name, shown, *names)}
    if name not in known:
        listed = [row[0] for row in rows]
        raise ClusterError(f"there is no job table {name!r}{did_you_mean(name, known, listed)}")
    return known[name]


def list_job_tables(connection: Connection[Any]) -> list[tuple[int, str]]:
    """All of them."""
    return [(oid, shown) for _, oid, shown, *_ in connection.execute(_JOB_TABLES).fetchall()]
