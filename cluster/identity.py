"""Whose jobs these are: `migrate` records which database of which server this is, and nodes refuse another one, a copy.

A restored dump, a clone of the database and an upgraded server have the record of where they come from. A physical copy is as
like the original as a standby, which must be promoted without a question: see docs/production.md.
Writes the row of cluster.identity.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from cluster.errors import SchemaMisfitError


def record_identity(connection: Connection[Any]) -> None:
    """For good: what is recorded stays, in a copy too."""
    connection.execute(record_statement(connection).encode())


def record_statement(connection: Connection[Any]) -> str:
    """SQL, to run here or to be shown."""
    return f"{_insert(connection)} ON CONFLICT DO NOTHING"


def adopt(connection: Connection[Any]) -> bool:
    """Makes a copy a database of its own, whose jobs nodes may run. False: it was that before."""
    if difference(connection) is None:
        return False
    connection.execute(adopt_statement(connection).encode())
    return True


def adopt_statement(connection: Connection[Any]) -> str:
    """SQL, to run here or to be shown."""
    return (
        f"{_insert(connection)}\nON CONFLICT (is_only_row) DO UPDATE\n"
        "SET (system_identifier, database, recorded_at) = (excluded.system_identifier, excluded.database, pg_catalog.now())"
    )


def check_identity(connection: Connection[Any]) -> None:
    """SchemaMisfitError: this database is a copy."""
    found = difference(connection)
    if found is not None:
        raise SchemaMisfitError(found)


def difference(connection: Connection[Any]) -> str | None:
    """What to tell of a copy. None: this is the database that was recorded, or none was."""
    recorded = connection.execute("SELECT system_identifier, database FROM cluster.identity").fetchone()
    here = connection.execute(f"SELECT {_here(connection)}".encode()).fetchone()
    if recorded is None or here is None:
        return None
    (server, database), (server_here, database_here) = recorded, here
    if database == database_here and (server == server_here or None in {server, server_here}):
        return None
    return (
        f"this is a copy of another database, or of one that was moved (recorded: {database} of server {server}; this is"
        f" {database_here} of {server_here}), and a node would run the jobs in it: clear or pause those that are not for here,"
        " then run `cluster migrate --adopt`"
    )


def is_recorded(connection: Connection[Any]) -> bool:
    """False also while schema cluster is not there."""
    if connection.execute("SELECT pg_catalog.to_regclass('cluster.identity')").fetchone() == (None,):
        return False
    return connection.execute("SELECT FROM cluster.identity").fetchone() is not None


def _insert(connection: Connection[Any]) -> str:
    return f"INSERT INTO cluster.identity (system_identifier, database) SELECT {_here(connection)}"


def _here(connection: Connection[Any]) -> str:
    """Two expressions: the server, NULL for a role that may not ask for it, and the database."""
    may_ask = connection.execute(_MAY_ASK).fetchone() == (True,)
    return f"{_SERVER if may_ask else 'NULL::pg_catalog.int8'}, {_DATABASE}"


_MAY_ASK = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
"""Everybody may, unless somebody has revoked it."""
_SERVER = "(SELECT system_identifier FROM pg_catalog.pg_control_system())"
_DATABASE = "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
