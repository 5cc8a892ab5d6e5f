"""Who did what with the command line: a row of cluster.audit in the transaction of the deed, or before it where that is long."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import Connection

    from cluster.selection import Selection

VIA = "cli"


def whoami() -> str:
    """The user of this machine and its name. Whoever can become another user can sign as one: the log of Postgres has the role."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def note(
    connection: Connection[Any],
    action: str,
    target: str,
    chosen: dict[str, Any] | None = None,
    count: int | None = None,
) -> int:
    """Returns the id of the row. chosen: the filter, or what else was given. count: jobs; None: not known yet, or none meant."""
    from psycopg.types.json import Jsonb

    query = "INSERT INTO cluster.audit (who, via, action, target, filter, count) VALUES (%s, %s, %s, %s, %s, %s) RETURNING id"
    values = [whoami(), VIA, action, target, Jsonb(chosen) if chosen else None, count]
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def noted(
    connection: Connection[Any], action: str, target: str, selection: Selection
) -> Iterator[Callable[[Counter[str]], bool]]:
    """Of rows by filter: noted before anything is changed, with their number at the end, or where it broke off. Give what it yields
    to `JobTable.change`.
    """
    import psycopg

    given = {name: getattr(selection, name) for name in ("queue", "error", "since", "older")}
    chosen = {"status": list(selection.statuses)} | {n: str(value) for n, value in given.items() if value is not None}
    number, done = note(connection, action, target, chosen), Counter[str]()

    def tell(counts: Counter[str]) -> bool:
        done.clear()
        done.update(counts)
        return True

    try:
        yield tell
    finally:
        with contextlib.suppress(psycopg.Error):  # the connection may be what broke: then the number is missing
            query = "UPDATE cluster.audit SET count = %s WHERE id = %s"
            connection.execute(query, [done.total() - done["busy"], number])
