"""Django's connections, in whatever `transaction.atomic` is open; Django opens, logs and checks them as for its own queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.errors import EnqueueError
from cluster.sessions import Row


class Django:
    """django.db.connection, or another of django.db.connections. Any: the library need not be installed."""

    placeholder = "%s"

    def __init__(self, connection: Any) -> None:
        if connection.vendor != "postgresql":
            raise EnqueueError(f"jobs are rows in Postgres: this is a connection to {connection.vendor}")
        self._connection = connection

    def row(self, statement: str, values: Sequence[Any]) -> Row:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            row: Row = cursor.fetchone()
            return row

    def in_transaction(self) -> bool:
        return self._connection.in_atomic_block or not self._connection.get_autocommit()

    def look(self, statement: str, values: Sequence[Any]) -> Row:
        return self.row(statement, values)

    def database(self) -> str | None:
        return str(self._connection.settings_dict["NAME"])
