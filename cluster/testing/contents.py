"""What is in a database, to compare it and to put it back. Not schema `cluster`, nor what Postgres itself keeps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from psycopg import Connection, errors, sql

from cluster.errors import ClusterError

CLOCK_COLUMNS = frozenset({"created_at", "updated_at"})
"""Not compared, whatever fills them."""
_SHOWN = 3


class Table(NamedTuple):
    """compared: its columns whose values do not come from a sequence, a clock or chance."""

    schema: str
    name: str
    compared: list[str]

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"


_TABLES = r"""
SELECT n.nspname, c.relname, array(
    SELECT a.attname::text FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = '' AND a.attgenerated = ''
      AND coalesce(regexp_replace(pg_get_expr(d.adbin, d.adrelid), '::[\w ."]+(\([\d, ]+\))?', '', 'g'), '')
          !~ '\(|CURRENT_|LOCALTIME'
    ORDER BY a.attnum)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('cluster', 'pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_%'
ORDER BY 1, 2
"""


def tables_of(connection: Connection[Any], ignore: Collection[str] = ()) -> list[Table]:
    """ignore: names of columns, of tables, or table.column, that are not compared."""
    found = []
    known: set[str] = set()
    for schema, name, columns in connection.execute(_TABLES).fetchall():
        table = Table(schema, name, [])
        ignored = {*CLOCK_COLUMNS, *ignore}
        kept = [column for column in columns if not {column, f"{name}.{column}", f"{table.label}.{column}"} & ignored]
        known |= {
            name,
            table.label,
            *columns,
            *(f"{label}.{column}" for label in (name, table.label) for column in columns),
        }
        if not {name, table.label} & ignored:
            found.append(table._replace(compared=kept))
    if unknown := set(ignore) - known:
        raise ClusterError(f"ignore names {min(unknown)!r}, which is no table, and no column that would be compared")
    return found


def rows_of(connection: Connection[Any], tables: list[Table]) -> dict[str, Counter[str]]:
    """By table, each row as JSON, with how often it is there."""
    contents = {}
    for table in tables:
        columns = sql.SQL(", ").join(map(sql.Identifier, table.compared))
        query = sql.SQL("SELECT row_to_json(r)::text, count(*) FROM (SELECT {} FROM {}) AS r GROUP BY 1")
        rows = connection.execute(query.format(columns, table.identifier)).fetchall()
        contents[table.label] = Counter(dict(rows))
    return contents


def steady(tables: list[Table], once: dict[str, Counter[str]], again: dict[str, Counter[str]]) -> list[Table]:
    """Without the columns that differ between two runs under the same conditions: they hold a time, or chance."""
    kept = []
    for table in tables:
        rows = [[json.loads(row) for row in contents[table.label].elements()] for contents in (once, again)]
        values = [
            {column: sorted(json.dumps(row[column]) for row in some) for column in table.compared} for some in rows
        ]
        same = len(rows[0]) != len(rows[1])  # no matter of values
        kept.append(table._replace(compared=[c for c in table.compared if same or values[0][c] == values[1][c]]))
    return kept


def differences(once: dict[str, Counter[str]], again: dict[str, Counter[str]]) -> list[str]:
    """What a run more has changed: lines for people."""
    return [line for label in once for line in _difference(label, once[label], again.get(label, Counter()))]


def _difference(label: str, once: Counter[str], again: Counter[str]) -> Iterator[str]:
    for sign, rows in (("+", again - once), ("-", once - again)):
        shown = sorted(rows.elements())
        yield from (f"{sign} {label} {row}" for row in shown[:_SHOWN])
        if len(shown) > _SHOWN:
            yield f"{sign} {label} … {len(shown) - _SHOWN} more"


class Saved:
    """The contents as they are now, to be put back any number of times. ClusterError: this role may not do that."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._tables = tables_of(connection)
        self._rows = [self._copied(table) for table in self._tables]
        self._sequences = connection.execute(_SEQUENCES).fetchall()

    def put_back(self) -> None:
        """In one transaction: tables that have changed, and sequences."""
        changed = [
            (table, rows) for table, rows in zip(self._tables, self._rows, strict=True) if self._copied(table) != rows
        ]
        with self._connection.transaction():
            _without_triggers(self._connection)
            for table, rows in changed:
                self._connection.execute(sql.SQL("DELETE FROM {}").format(table.identifier))
                into = sql.SQL("COPY {} ({}) FROM STDIN").format(table.identifier, self._columns(table))
                with self._connection.cursor().copy(into) as copying:
                    copying.write(rows)
            self.put_back_sequences()

    def put_back_sequences(self) -> None:
        """So that what is inserted again gets the same numbers; not below those that rows have."""
        for name, last, is_called in self._sequences:
            self._connection.execute("SELECT setval(%s::regclass, %s, %s)", [name, last, is_called])
        for sequence, table, column in self._connection.execute(_OWNED_SEQUENCES).fetchall():
            parts = sql.Literal(sequence), sql.Identifier(column), sql.SQL(table), sql.SQL(sequence)
            self._connection.execute(_NOT_BELOW.format(*parts))

    def _copied(self, table: Table) -> bytes:
        query = sql.SQL("COPY (SELECT {} FROM {} AS t ORDER BY t::text) TO STDOUT")
        with self._connection.cursor().copy(query.format(self._columns(table), table.identifier)) as copying:
            return b"".join(bytes(part) for part in copying)

    def _columns(self, table: Table) -> sql.Composed:
        """All that can be written."""
        rows = self._connection.execute(_WRITABLE, [table.identifier.as_string()]).fetchall()
        return sql.SQL(", ").join(sql.Identifier(name) for (name,) in rows)


_WRITABLE = """
SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum"""
_NOT_BELOW = sql.SQL(
    "SELECT setval({}::regclass, top) FROM (SELECT max({}) AS top FROM {}) AS t WHERE top >= (SELECT last_value FROM {})"
)


def _without_triggers(connection: Connection[Any]) -> None:
    try:
        connection.execute("SET LOCAL session_replication_role = replica")
    except errors.InsufficientPrivilege as error:
        raise ClusterError(
            "the database is put back without triggers and foreign keys: that takes a superuser, or GRANT SET ON PARAMETER"
            f" session_replication_role TO {connection.info.user}"
        ) from error


_SEQUENCES = r"""
SELECT c.oid::regclass::text, coalesce(s.last_value, s.start_value), s.last_value IS NOT NULL
FROM pg_sequences AS s JOIN pg_class AS c ON c.relname = s.sequencename
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = s.schemaname
WHERE s.schemaname <> 'cluster'"""
_OWNED_SEQUENCES = r"""
SELECT s.oid::regclass::text, d.refobjid::regclass::text, a.attname
FROM pg_class AS s JOIN pg_namespace AS n ON n.oid = s.relnamespace
JOIN pg_depend AS d ON d.objid = s.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE s.relkind = 'S' AND n.nspname <> 'cluster'"""
