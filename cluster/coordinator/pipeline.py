"""Several transactions in one round trip, on psycopg's pq layer: the answers to each come as soon as it has committed, while
psycopg's own pipeline gives all of them at its end, and takes a third more CPU.

Statements are prepared when they are first run on a connection; behind a pooler they are not prepared at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from itertools import chain, count
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
_adapters: WeakKeyDictionary[AsyncConnection[Any], abc.Transformer] = WeakKeyDictionary()
_numbers = count()


@contextlib.asynccontextmanager
async def sent(connection: AsyncConnection[Any], *transactions: Sequence[Command]) -> AsyncIterator[Answers]:
    """Each a transaction of its own, unless it says BEGIN and COMMIT itself. Read all answers, or the connection is closed.

    psycopg.Error: a statement can't be prepared, or the connection is lost.
    """
    answers = Answers(connection)
    await answers.send(*transactions)
    try:
        yield answers
    finally:
        answers.close()


async def ask(connection: AsyncConnection[Any], commands: Sequence[Command]) -> list[PGresult]:
    """The answers to one transaction, in order. psycopg.Error: the first that is an error, or the connection is lost."""
    async with sent(connection, commands) as answers:
        results = await answers.next()
    error = error_of(connection, results)
    if isinstance(error, errors.InvalidSqlStatementName):
        return await ask(connection, commands)
    if error is not None:
        raise error
    return results


class Answers:
    """Of a pipeline: binary values."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._left = 0
        self._unsent = 0

    async def send(self, *transactions: Sequence[Command]) -> None:
        """See `sent`. All answers to what was sent before must have been read."""
        if not transactions:
            return
        connection, pgconn = self._connection, self._pgconn
        bound = [[_bind(connection, command) for command in commands] for commands in transactions]
        names: dict[_Key, bytes] | None = None
        if connection.prepare_threshold is not None:
            names = _prepared.setdefault(connection, {})
            for key in {(item.statement, item.types) for item in chain(*bound)} - names.keys():
                names[key] = await _prepare(connection, *key)
        pgconn.enter_pipeline_mode()
        for commands in bound:
            for command in commands:
                _send(pgconn, command, names)
            pgconn.pipeline_sync()
        self.expect(len(bound))

    def expect(self, transactions: int) -> None:
        """So many have been put into the pipeline, and go out from now on."""
        self._left = transactions
        self._unsent = self._pgconn.flush()

    def close(self) -> None:
        """Ends the connection if there are answers that nobody has read."""
        if self._pgconn.pipeline_status != pq.PipelineStatus.OFF:
            self._pgconn.finish()

    async def next(self) -> list[PGresult]:
        """To the next transaction, in order. The last one may be an error, see `error_of`: then those behind it are missing."""
        pgconn = self._pgconn
        results: list[PGresult] = []
        while True:
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    continue  # between the answers to two statements
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    self._left -= 1
                    if not self._left:
                        pgconn.exit_pipeline_mode()
                    return results
                if pgconn.status != pq.ConnStatus.OK:
                    raise errors.error_from_result(result)
                if result.status != pq.ExecStatus.PIPELINE_ABORTED:
                    results.append(result)
            await _ready(pgconn.socket, writing=bool(self._unsent))
            pgconn.consume_input()
            self._unsent = self._unsent and pgconn.flush()


def adapter_of(connection: AsyncConnection[Any]) -> abc.Transformer:
    """Converts values as the connection does, whose texts must be in UTF-8. One for all statements: it remembers how, by type."""
    adapter = _adapters.get(connection)
    if adapter is None:
        adapter = _adapters[connection] = Transformer(connection.adapters)  # one of the connection would keep it alive
    return adapter


def rows(adapter: abc.Transformer, result: PGresult) -> list[Any]:
    """Tuples, of one answer, as this adapter loads values."""
    adapter.set_pgresult(result)
    return adapter.load_rows(0, result.ntuples, tuple)


def error_of(connection: AsyncConnection[Any], results: Sequence[PGresult]) -> psycopg.Error | None:
    """What the last of these answers says went wrong; None: nothing did. InvalidSqlStatementName: worth another try."""
    if not results or results[-1].status != pq.ExecStatus.FATAL_ERROR:
        return None
    error = errors.error_from_result(results[-1], encoding=connection.info.encoding)
    if isinstance(error, errors.InvalidSqlStatementName):
        _prepared.pop(connection, None)  # a rollback of psycopg's deallocates all that is prepared
    return error


# --- to the server ---


def _bind(connection: AsyncConnection[Any], command: Command) -> _Bound:
    statement, names = _positional(command.statement)
    adapter = adapter_of(connection)
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
    pgconn.pipeline_sync()
    answers = Answers(connection)
    answers.expect(1)
    error = error_of(connection, await answers.next())
    if error is not None:
        raise error
    return name


def _send(pgconn: PGconn, command: _Bound, names: Mapping[_Key, bytes] | None) -> None:
    """names: of the prepared statements; None: they are not prepared."""
    statement, values, types, formats = command
    if names is None:
        pgconn.send_query_params(statement, values, types, formats, pq.Format.BINARY)
    else:
        pgconn.send_query_prepared(names[statement, types], values, formats, pq.Format.BINARY)


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
