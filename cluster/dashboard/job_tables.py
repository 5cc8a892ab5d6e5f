"""Which job tables there are, what they are called in addresses, their columns, and what the dashboard's role may do with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from psycopg import sql

from cluster.dashboard.database import Connection
from cluster.job_checks import STANDARD_COLUMNS
from cluster.secret import MARK
from cluster.statements import Key

PAGES = frozenset(
    "queues errors schedules palette nodes audit static live charts bulk pause resume".split()  # noqa: SIM905
)
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
    """Those that this dashboard shows, in the order of their names, or in which the application gave them."""
    return connection.shown([JobTable(**row) for row in await (await connection.execute(_TABLES)).fetchall()])


def named(tables: list[JobTable], name: str) -> JobTable | None:
    """The one that an address means: by its slug, its full name or its job type's."""
    for names in (lambda t: t.slug, lambda t: f"{t.schema}.{t.relation}", lambda t: t.name):
        for table in tables:
            if names(table) == name:
                return table
    return None


NAMING = ("name", "title", "label", "email")
"""Columns that say in words which row it is: the first one, of text, that a referenced table has."""


@dataclass(frozen=True)
class Column:
    """type: as format_type() prints it; bare_type: without lengths; category: as in pg_type; element: type of what an array has.

    default: SQL, None: there is none. choices: of an enum. checks: the conditions on it, as SQL. target: table of a foreign key.
    source: SQL of two columns, the values that it may have and what they stand for; None: nobody knows. has_index: on the latter.
    """

    name: str
    type: str
    bare_type: str
    category: str
    element: str | None
    is_required: bool
    default: str | None
    choices: list[str] | None
    checks: list[str]
    is_secret: bool
    is_indexed: bool
    target: str | None = None
    source: str | None = None
    has_index: bool = False

    @property
    def is_standard(self) -> bool:
        return self.name in STANDARD_COLUMNS or self.name == "parked"


_COLUMNS = """
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type, format_type(a.atttypid, -1) AS bare_type,
       t.typcategory::text AS category, CASE WHEN base.typelem <> 0 THEN format_type(base.typelem, -1) END AS element,
       a.attnotnull AS is_required,
       CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END AS default,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = base.oid) AS choices,
       ARRAY(SELECT pg_get_expr(c.conbin, c.conrelid) FROM pg_constraint AS c
             WHERE c.conrelid = a.attrelid AND c.contype = 'c' AND a.attnum = ANY (c.conkey) ORDER BY c.conname) AS checks,
       coalesce(strpos(col_description(a.attrelid, a.attnum), %(secret)s) > 0, false) AS is_secret,
       EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS k ON k.oid = i.indexrelid
               WHERE i.indrelid = a.attrelid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = a.attnum
               AND k.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')) AS is_indexed,
       f.target, f.key, f.label, f.has_index
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
JOIN pg_type AS base ON base.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN LATERAL (
    SELECT c.confrelid::regclass::text AS target,
           CASE WHEN has_column_privilege(c.confrelid, k.attnum, 'SELECT') THEN k.attname::text END AS key,
           named.name AS label, coalesce(named.has_index, false) AS has_index
    FROM pg_constraint AS c JOIN pg_attribute AS k ON k.attrelid = c.confrelid AND k.attnum = c.confkey[1]
    LEFT JOIN LATERAL (
        SELECT l.attname::text AS name, EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = l.attrelid AND i.indisvalid
                                                AND i.indpred IS NULL AND i.indkey[0] = l.attnum) AS has_index
        FROM pg_attribute AS l JOIN pg_type AS lt ON lt.oid = l.atttypid
        WHERE l.attrelid = c.confrelid AND l.attnum > 0 AND NOT l.attisdropped AND l.attname = ANY (%(naming)s)
        AND lt.typcategory = 'S' AND has_column_privilege(c.confrelid, l.attnum, 'SELECT')
        AND coalesce(strpos(col_description(l.attrelid, l.attnum), %(secret)s), 0) = 0
        ORDER BY array_position(%(naming)s, l.attname::text) LIMIT 1
    ) AS named ON true
    WHERE c.conrelid = a.attrelid AND c.contype = 'f' AND c.conkey = ARRAY[a.attnum] LIMIT 1
) AS f ON true
WHERE a.attrelid = %(oid)s::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_NODES = "SELECT id, hostname || ':' || pid FROM cluster.nodes"


async def columns_of(connection: Connection, table: JobTable) -> list[Column]:
    values = {"oid": table.oid, "naming": list(NAMING), "secret": MARK}
    return [_column(row) for row in await (await connection.execute(_COLUMNS, values)).fetchall()]


def _column(row: dict[str, Any]) -> Column:
    key, label = row.pop("key"), row.pop("label")
    row["has_index"] = bool(row["has_index"])
    if row["name"] == "locked_by":
        return Column(**row | {"source": _NODES, "is_secret": False})
    if row["name"] in STANDARD_COLUMNS:
        return Column(**row | {"is_secret": False})
    if key is None:
        return Column(**row)
    names = ", ".join(sql.Identifier(name).as_string(None) for name in (key, label or key))
    return Column(**row | {"source": f"SELECT {names} FROM {row['target']}"})  # noqa: S608 - identifiers, quoted
