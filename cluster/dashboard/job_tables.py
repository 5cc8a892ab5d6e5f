"""Which job tables there are, what they are called in addresses, their columns, and what the dashboard's role may do with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from psycopg import sql

from cluster.dashboard.database import Connection
from cluster.job_checks import STANDARD_COLUMNS
from cluster.statements import Key

PAGES = frozenset({"queues", "errors", "schedules", "nodes", "audit", "static", "live", "bulk", "pause", "resume"})
"""Names of pages: a table of such a name goes by its full one."""
_PLAIN = re.compile(r"[\w.$ -]+")


@dataclass(frozen=True)
class JobTable:
    """A row of cluster.job_types whose table is there. sql_name: quoted as SQL needs it. limit None: there is none."""

    name: str
    oid: int
    schema: str
    relation: str
    sql_name: str
    is_visible: bool
    key: str | None
    limit: int | None
    max_attempts: int
    is_overridden: bool
    paused_at: Any  # Any: a datetime, or None
    paused_reason: str | None
    may_read: bool
    may_update: bool
    may_delete: bool
    may_insert: bool

    @property
    def slug(self) -> str:
        """Its name in addresses, not yet quoted."""
        full = f"{self.schema}.{self.relation}"
        if not _PLAIN.fullmatch(full):
            return f"oid-{self.oid}"
        return self.relation if self.is_visible and self.relation not in PAGES and "." not in self.relation else full

    @property
    def path(self) -> str:
        return quote(self.slug)

    @property
    def address(self) -> tuple[str, str]:
        return self.schema, self.relation

    @property
    def identifier(self) -> sql.SQL:
        return quoted(*self.address)

    @property
    def statement_key(self) -> Key | None:
        return None if self.key is None else Key(self.key, "")


def quoted(*names: str) -> sql.SQL:
    """As an identifier, in a statement that is given values, if none at all: a lone percent sign would be a placeholder."""
    return sql.SQL(sql.Identifier(*names).as_string(None).replace("%", "%%"))


_TABLES = """
SELECT t.name, c.oid::bigint, n.nspname::text AS schema, c.relname::text AS relation, c.oid::regclass::text AS sql_name,
       pg_table_is_visible(c.oid) AS is_visible, t.concurrency_key AS key,
       coalesce(t.max_concurrency_override, t.max_concurrency) AS limit, t.max_attempts,
       t.max_concurrency_override IS NOT NULL AS is_overridden, t.paused_at, t.paused_reason,
       has_any_column_privilege(c.oid, 'SELECT') AS may_read, has_table_privilege(c.oid, 'UPDATE') AS may_update,
       has_table_privilege(c.oid, 'DELETE') AS may_delete, has_any_column_privilege(c.oid, 'INSERT') AS may_insert
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
"""


async def all_tables(connection: Connection) -> list[JobTable]:
    """In the order of their names."""
    return [JobTable(**row) for row in await (await connection.execute(_TABLES)).fetchall()]


def named(tables: list[JobTable], name: str) -> JobTable | None:
    """The one that an address means: by its slug, its full name or its job type's."""
    for names in (lambda t: t.slug, lambda t: f"{t.schema}.{t.relation}", lambda t: t.name):
        for table in tables:
            if names(table) == name:
                return table
    return None


@dataclass(frozen=True)
class Column:
    """type: as format_type() prints it. default: SQL, None: there is none. choices: of an enum. target: table of a foreign key."""

    name: str
    type: str
    is_required: bool
    default: str | None
    choices: list[str] | None
    target: str | None

    @property
    def is_standard(self) -> bool:
        return self.name in STANDARD_COLUMNS or self.name == "parked"


_COLUMNS = """
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS is_required,
       CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END AS default,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = a.atttypid) AS choices,
       (SELECT f.confrelid::regclass::text FROM pg_constraint AS f
        WHERE f.conrelid = a.attrelid AND f.contype = 'f' AND f.conkey = ARRAY[a.attnum] LIMIT 1) AS target
FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


async def columns_of(connection: Connection, table: JobTable) -> list[Column]:
    return [Column(**row) for row in await (await connection.execute(_COLUMNS, [table.oid])).fetchall()]
