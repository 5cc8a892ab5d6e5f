"""Several statements in one round trip: what psycopg's pipeline does, with a third of its CPU, since all are sent at once and
waited for once.

Statements are prepared when they are first run on a connection; behind a pooler they are not prepared at all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, abc, errors, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq.abc import PGconn, PGresult


class Command(NamedTuple):
    """A statement with placeholders such as %(name)s, and their values."""

    statement: bytes
    parameters: Mapping[str, Any] = {}


class _Bound(NamedTuple):
    """A statement with placeholders such as $1, and their values as they are sent."""

    statement: bytes
    values: Sequence[Any]
    types: tuple[int, ...]
    formats: Sequence[pq.Format]


_Key = tuple[bytes, tuple[int, ...]]
"""A statement and the types of its values."""
_prepared: WeakKeyDictionary[AsyncConnection[Any], dict[_Key, bytes]] = WeakKeyDictionary()
_numbers = count()


async def run(connection: AsyncConnection[Any], commands: Iterable[Command]) -> list[PGresult]:
    """The answers, in order, with binary values. The last one may be an error, see `error_of`: then those behind it are missing.

    They are one transaction, unless they say BEGIN and COMMIT themselves. psycopg.Error: a statement can't be prepared, or the
    connection is lost.
    """
    bound = [_bind(connection, command) for command in commands]
    if connection.prepare_threshold is None:
        return await _send(connection.pgconn, bound)
    names = _prepared.setdefault(connection, {})
    missing = {(item.statement, item.types) for item in bound} - names.keys()
    for key in missing:
        names[key] = await _prepare(connection, *key)
    return await _send(connection.pgconn, bound, names)


async def ask(connection: AsyncConnection[Any], commands: Iterable[Command]) -> list[PGresult]:
    """The answers, in order. psycopg.Error: the first that is an error, or the connection is lost."""
    results = await run(connection, commands)
    error = error_of(connection, results)
    if error is not None:
        raise error
    return results


def rows(adapter: abc.Transformer, result: PGresult) -> list[Any]:
    """Tuples, of one answer, as this adapter loads values."""
    adapter.set_pgresult(result)
    return adapter.load_rows(0, result.ntuples, tuple)


def error_of(connection: AsyncConnection[Any], results: Sequence[PGresult]) -> psycopg.Error | None:
    """What the last of these answers says went wrong; None: nothing did."""
    if not results or results[-1].status != pq.ExecStatus.FATAL_ERROR:
        return None
    return errors.error_from_result(results[-1], encoding=connection.info.encoding)


# --- to the server ---


def _bind(connection: AsyncConnection[Any], command: Command) -> _Bound:
    statement, names = _positional(command.statement)
    adapter = Transformer(connection)
    values = adapter.dump_sequence([command.parameters[name] for name in names], [PyFormat.AUTO] * len(names))
    return _Bound(statement, values, tuple(adapter.types or ()), adapter.formats or ())


@cache
def _positional(statement: bytes) -> tuple[bytes, tuple[str, ...]]:
    """$1 for %(name)s, and the names in order."""
    names: list[str] = []

    def place(found: re.Match[bytes]) -> bytes:
        if found[1] is None:
            return b"%"
        name = found[1].decode()
        if name not in names:
            names.append(name)
        return b"$%d" % (names.index(name) + 1)

    return re.sub(rb"%(?:\((\w+)\)s|%)", place, statement), tuple(names)


async def _prepare(connection: AsyncConnection[Any], statement: bytes, types: tuple[int, ...]) -> bytes:
    pgconn, name = connection.pgconn, b"cluster_%d" % next(_numbers)
    pgconn.enter_pipeline_mode()
    pgconn.send_prepare(name, statement, types)
    error = error_of(connection, await _answers(pgconn))
    if error is not None:
        raise error
    return name


async def _send(
    pgconn: PGconn, commands: Sequence[_Bound], names: Mapping[_Key, bytes] | None = None
) -> list[PGresult]:
    """names: of the prepared statements; None: they are not prepared."""
    pgconn.enter_pipeline_mode()
    for statement, values, types, formats in commands:
        if names is None:
            pgconn.send_query_params(statement, values, types, formats, pq.Format.BINARY)
        else:
            pgconn.send_query_prepared(names[statement, types], values, formats, pq.Format.BINARY)
    return await _answers(pgconn)


# --- from the server ---


async def _answers(pgconn: PGconn) -> list[PGresult]:
    """Ends the pipeline, and returns what was answered up to the first error."""
    pgconn.pipeline_sync()
    results: list[PGresult] = []
    unsent = pgconn.flush()
    while True:
        await _ready(pgconn.socket, writing=bool(unsent))
        pgconn.consume_input()
        unsent = unsent and pgconn.flush()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                continue  # between the answers to two statements
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                return results
            if result.status != pq.ExecStatus.PIPELINE_ABORTED:
                results.append(result)
            if pgconn.status != pq.ConnStatus.OK:
                raise errors.error_from_result(result)


async def _ready(socket: int, *, writing: bool) -> None:
    """Returns when there is something to read, or, if asked for, room to write."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(socket, wake)
    if writing:
        loop.add_writer(socket, wake)
    try:
        await ready
    finally:
        loop.remove_reader(socket)
        if writing:
            loop.remove_writer(socket)
