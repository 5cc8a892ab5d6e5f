"""Ends a job's work with the database before its nth statement, as the death of its process would: for `assert_repeatable`.

It sees what goes through psycopg's cursors, commits and transactions, so also SQLAlchemy, SQLModel and Django on psycopg 3, in the
context of the job: its own code, its event loop, and threads that copy the context, such as those of asyncio.to_thread.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest import mock
from weakref import WeakSet

import psycopg

_METHODS = ("execute", "executemany", "copy", "stream")


class Killed(BaseException):
    """Raised in place of a statement. No Exception: what a job catches is not for it."""


class Watch:
    """Of one run. statements: what was sent, in order. last: how many may be sent, None: all."""

    def __init__(self, last: int | None = None) -> None:
        self.statements: list[str] = []
        self.is_killed = False
        self._last = last
        self._connections: WeakSet[Any] = WeakSet()

    def sees(self, connection: Any, statement: str) -> None:
        """Killed: this one is not sent, nor any after it."""
        self._connections.add(connection)
        if self.is_killed or len(self.statements) == self._last:
            self._kill()
        self.statements.append(statement)

    def _kill(self) -> None:
        self.is_killed = True
        for connection in self._connections:
            connection.pgconn.finish()  # as if the process were gone: the server rolls back
        raise Killed


_watch: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Statements of this context, and of contexts that are copied from it meanwhile, are seen."""
    with _patched():
        token = _watch.set(watch)
        try:
            yield
        finally:
            _watch.reset(token)


@contextmanager
def _patched() -> Iterator[None]:
    patches = [
        mock.patch.object(kind, name, _seen(vars(kind)[name], lambda cursor: cursor.connection))
        for kind in (psycopg.Cursor, psycopg.AsyncCursor, psycopg.ServerCursor, psycopg.AsyncServerCursor)
        for name in _METHODS
        if name in vars(kind)
    ]
    owner = next(kind for kind in psycopg.Connection.__mro__ if "_exec_command" in vars(kind))
    patches.append(mock.patch.object(owner, "_exec_command", _commits(vars(owner)["_exec_command"])))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _seen(method: Callable[..., Any], connection_of: Callable[[Any], Any]) -> Callable[..., Any]:
    """The method, which first lets the watch see its statement."""

    def tell(cursor: Any, query: Any) -> None:
        watch = _watch.get()
        if watch is not None:
            watch.sees(connection_of(cursor), _text(query))

    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def execute(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            tell(self, query)
            return await method(self, query, *arguments, **options)

        return execute

    @wraps(method)
    def call(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        tell(self, query)
        return method(self, query, *arguments, **options)

    return call


def _commits(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def send(self: Any, command: Any, *arguments: Any, **options: Any) -> Any:
        watch = _watch.get()
        if watch is not None and _text(command).upper().startswith("COMMIT"):
            watch.sees(self, "COMMIT")
        return method(self, command, *arguments, **options)

    return send


def _text(query: Any) -> str:
    if isinstance(query, psycopg.sql.Composable):
        query = query.as_string()
    text = query.decode(errors="replace") if isinstance(query, bytes) else str(query)
    return " ".join(text.split())
