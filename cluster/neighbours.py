"""Who else could run code as this role: checked before a node starts and before anything is migrated.

Whoever may create in a schema of the search path can give `=` a better match for a type of ours, and it runs as who compares.
Checked, and not set for each session: users' triggers on job tables may need the path, and behind a pooler it can't be set.
These queries name functions by schema, and compare only types whose operators Postgres has exactly, so they are safe themselves.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection, sql

from cluster.errors import SchemaMisfitError


def check_neighbours(connection: Connection[Any], tables: list[str] | None = None) -> None:
    """SchemaMisfitError: schema cluster, or one of the search path, is in the hands of somebody who is not trusted anyhow.

    tables: quoted names of a node's job tables: who owns all of them may own the schema as well: their triggers run as the node.
    """
    _check_owner(connection, tables or [])
    _check_search_path(connection)


def _check_owner(connection: Connection[Any], tables: list[str]) -> None:
    for (owner,) in connection.execute(_STRANGE_OWNER, [tables]):
        raise SchemaMisfitError(
            f"schema cluster belongs to role {_quoted(connection, owner)}, whose functions would run as "
            f"{_quoted(connection, connection.info.user)}: if you trust it, ALTER SCHEMA cluster OWNER TO the owner of the database"
        )


_STRANGE_OWNER = """
SELECT r.rolname::pg_catalog.text FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
WHERE n.nspname = 'cluster'::pg_catalog.name AND NOT r.rolsuper
  AND NOT EXISTS (  -- a superuser is a member of everything
      SELECT FROM pg_catalog.pg_roles me WHERE me.rolname = CURRENT_USER
      AND CASE WHEN me.rolsuper THEN false ELSE pg_catalog.pg_has_role(n.nspowner, 'MEMBER'::pg_catalog.text) END
  )
  AND n.nspowner <> (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND n.nspowner <> ALL (
      SELECT pg_catalog.min(c.relowner::pg_catalog.int8)::pg_catalog.oid
      FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS t (name)
      JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(t.name)::pg_catalog.oid
      HAVING pg_catalog.min(c.relowner::pg_catalog.int8) = pg_catalog.max(c.relowner::pg_catalog.int8)
  )
"""


def _check_search_path(connection: Connection[Any]) -> None:
    known = connection.execute(_HAS_JOB_TYPES).fetchone() == (True,)
    query = _CREATORS.replace("{table_owners}", _TABLE_OWNERS if known else "")
    rows = connection.execute(query.encode()).fetchall()
    if rows:
        schemas = sorted({_quoted(connection, schema) for schema, _, _ in rows})
        roles = sorted({_quoted(connection, role) for _, role, _ in rows})
        remedies = sorted(
            f"REVOKE CREATE ON SCHEMA {_quoted(connection, schema)} FROM "
            f"{'PUBLIC' if grantee is None else _quoted(connection, grantee)}"
            for schema, grantee in {(schema, grantee) for schema, _, grantee in rows}
        )
        named = f"{', '.join(roles[:3])}{' and others' if len(roles) > 3 else ''}"
        raise SchemaMisfitError(
            f"role {named} may create in schema {', '.join(schemas)} of the search path, and so run code as "
            f"{_quoted(connection, connection.info.user)}: {'; '.join(remedies)}; or take the schema from the search path"
        )


def _quoted(connection: Connection[Any], name: str) -> str:
    return sql.Identifier(name).as_string(connection)


_HAS_JOB_TYPES = "SELECT pg_catalog.to_regclass('cluster.job_types') IS NOT NULL"

_TABLE_OWNERS = """
    UNION SELECT c.relowner FROM cluster.job_types j JOIN pg_catalog.pg_class c ON c.oid = j.job_table::pg_catalog.oid"""
"""Their triggers run as the node."""

_CREATORS = """
WITH trusted (owner) AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = CURRENT_USER
    UNION SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
    UNION SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'cluster'::pg_catalog.name{table_owners}
), grants AS (
    SELECT n.nspname, acl.grantee
    FROM pg_catalog.pg_namespace n
    CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n'::"char", n.nspowner))) AS acl
    WHERE n.nspname = ANY (pg_catalog.current_schemas(false)) AND acl.privilege_type = 'CREATE'::pg_catalog.text
    UNION SELECT nspname, nspowner FROM pg_catalog.pg_namespace WHERE nspname = ANY (pg_catalog.current_schemas(false))
)
SELECT g.nspname::pg_catalog.text, r.rolname::pg_catalog.text,
    (SELECT rolname::pg_catalog.text FROM pg_catalog.pg_roles WHERE oid = g.grantee)
FROM grants g JOIN pg_catalog.pg_roles r
  ON CASE WHEN g.grantee = 0::pg_catalog.oid THEN true
          ELSE pg_catalog.pg_has_role(r.oid, g.grantee, 'MEMBER'::pg_catalog.text) END
WHERE r.rolcanlogin AND NOT r.rolsuper
  AND pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CONNECT'::pg_catalog.text)
  AND NOT EXISTS (SELECT FROM trusted t WHERE pg_catalog.pg_has_role(r.oid, t.owner, 'MEMBER'::pg_catalog.text))
ORDER BY g.nspname, r.rolname
"""
"""Roles that may log in here and create in a schema of the path, and are neither superusers nor may act as somebody trusted."""
