"""Whose jobs these are: `migrate` records which database of which server this is, and nodes refuse another one, a copy.

A restored dump, a clone of the database and an upgraded server have the record of where they come from. A physical copy is as
like the original as a standby, which must be promoted without a question: see docs/production.md.
Writes the row of cluster.identity.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from cluster.errors import SchemaMisfitError

_HERE = """SELECT system_identifier, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
FROM pg_catalog.pg_control_system()"""
_INSERT = f"INSERT INTO cluster.identity (system_identifier, database) {_HERE}"
RECORD = f"{_INSERT} ON CONFLICT DO NOTHING"
ADOPT = f"""{_INSERT}
ON CONFLICT (is_only_row) DO UPDATE
SET (system_identifier, database, recorded_at) = (excluded.system_identifier, excluded.database, pg_catalog.now())"""


def record_identity(connection: Connection[Any]) -> None:
    """For good: what is recorded stays, in a copy too."""
    connection.execute(RECORD.encode())


def adopt(connection: Connection[Any]) -> bool:
    """Makes a copy a database of its own, whose jobs nodes may run. False: it was that before."""
    if difference(connection) is None:
        return False
    connection.execute(ADOPT.encode())
    return True


def check_identity(connection: Connection[Any]) -> None:
    """SchemaMisfitError: this database is a copy."""
    found = difference(connection)
    if found is not None:
        raise SchemaMisfitError(found)


def difference(connection: Connection[Any]) -> str | None:
    """What to tell of a copy. None: this is the database that was recorded, or none was."""
    row = connection.execute(_RECORDED_AND_HERE.encode()).fetchone()
    if row is None or row[:2] == row[2:]:
        return None
    (server, database, server_here, database_here) = row
    return (
        f"this is a copy of another database, or of one that was moved (recorded: {database} of server {server}; this is"
        f" {database_here} of {server_here}), and a node would run the jobs in it: clear or pause those that are not for here,"
        " then run `cluster migrate --adopt`"
    )


_RECORDED_AND_HERE = (
    f"SELECT r.system_identifier, r.database, here.* FROM cluster.identity r CROSS JOIN ({_HERE}) AS here"  # noqa: S608 - a constant
)


def is_recorded(connection: Connection[Any]) -> bool:
    """False also while schema cluster is not there."""
    if connection.execute("SELECT pg_catalog.to_regclass('cluster.identity')").fetchone() == (None,):
        return False
    return connection.execute("SELECT FROM cluster.identity").fetchone() is not None
