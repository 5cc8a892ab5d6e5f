"""What an error of Postgres is about. psycopg's exception classes do not tell: OperationalError also holds a row that no index
takes, and a user's trigger may raise any SQLSTATE there is. So: is the connection alive, where was it raised, and which code.
"""

from __future__ import annotations

from enum import Enum, auto

import psycopg


class Cause(Enum):
    """Who is to blame, and so what is to be tried again."""

    LOST = auto()
    """The connection, or the server as a whole. The statement may have taken effect."""
    LOCKED = auto()
    """Somebody holds a lock: on the table, if the statement skips locked rows."""
    SLOW = auto()
    """It did not end in time, or somebody cancelled it: a trigger takes long, or there are too many rows."""
    PASSING = auto()
    """A deadlock, a full disk: the same statement may work in a moment."""
    STALE_PLAN = auto()
    """The table has changed since the statement was prepared: prepare it anew."""
    UNDEFINED = auto()
    """Our own statement names a table or column that is not there: ask the catalog."""
    DENIED = auto()
    """The role lacks a privilege that our own statement needs."""
    TAKEN = auto()
    """A unique index or exclusion constraint: another row is in the way, for now."""
    ROW = auto()
    """A value, a check, a trigger that raises: this row will always be refused, until somebody changes something."""
    TABLE = auto()
    """Anything else, such as a trigger whose own table is gone: not the row's fault."""


WHY_HELD = {
    Cause.LOCKED: "table_locked", Cause.SLOW: "too_slow", Cause.DENIED: "no_privilege", Cause.PASSING: "query_failed",
    Cause.UNDEFINED: "table_missing",
}  # fmt: skip
"""Reasons of troubles that a cause explains by itself."""


def cause_of(error: psycopg.Error, *, alive: bool = True) -> Cause:
    """alive: the connection can still be used."""
    code = error.sqlstate
    if not alive or error.diag.severity_nonlocalized in {"FATAL", "PANIC"}:
        return Cause.LOST
    if code is None:  # the driver's own: the connection, or a value that it can't convert
        return Cause.LOST if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else Cause.TABLE
    inside = is_from_inside(error)
    if not inside and code in _OURS:
        return _OURS[code]
    if not inside and code == "0A000" and error.diag.source_function == "RevalidateCachedQuery":
        return Cause.STALE_PLAN
    if code == "57014" and error.diag.source_function == "ProcessInterrupts":  # not raised by a trigger
        return Cause.SLOW
    if code in _ANYWHERE:
        return _ANYWHERE[code]
    return _BY_CLASS.get(code[:2], Cause.TABLE)


def is_from_inside(error: psycopg.Error) -> bool:
    """Raised in a function that our statement called: a trigger, a check, a default; not by the statement itself."""
    return bool(error.diag.context or error.diag.internal_query)


def brief(error: Exception) -> str:
    """One line, for logs."""
    return str(error).strip().partition("\n")[0][:300]


_OURS = {
    "25006": Cause.LOST,  # read only: another server is the primary now
    "42P01": Cause.UNDEFINED, "42703": Cause.UNDEFINED, "3F000": Cause.UNDEFINED, "42704": Cause.UNDEFINED,
    "42501": Cause.DENIED,
}  # fmt: skip
_ANYWHERE = {
    "55P03": Cause.LOCKED, "40001": Cause.PASSING, "40P01": Cause.PASSING, "40003": Cause.PASSING, "57014": Cause.PASSING,
    "23505": Cause.TAKEN, "23P01": Cause.TAKEN, "P0001": Cause.ROW,
}  # fmt: skip
_BY_CLASS = {
    "22": Cause.ROW, "23": Cause.ROW, "44": Cause.ROW, "54": Cause.ROW, "P0": Cause.ROW,
    "53": Cause.PASSING, "58": Cause.PASSING, "57": Cause.PASSING, "08": Cause.PASSING,
}  # fmt: skip
