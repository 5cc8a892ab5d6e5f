"""Several transactions in one round trip, on psycopg's pq layer: the answers to each come as soon as it has committed, while
psycopg's own pipeline gives all of them at its end, and takes a third more CPU.

Statements are prepared when they are first run on a connection; behind a pooler they are not prepared at all.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, abc, errors, pq
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.pq.abc import PGconn, PGresult

from cluster.coordinator import arrays
from cluster.coordinator.arrays import InstantLoader


class Command(NamedTuple):
    """A statement with placeholders such as %(name)s, and their values. recurs: it will likely be sent again with the same values,
    which are kept as they are sent; a name's values are all of one type then."""

    statement: bytes
    parameters: Mapping[str, Any] = {}
    recurs: bool = False


class _Bound(NamedTuple):
    """A statement with placeholders such as $1, and their values as they are sent."""

    statement: bytes
    values: Sequence[Any]
    types: tuple[int, ...]
    formats: Sequence[pq.Format]


_Key = tuple[bytes, tuple[int, ...]]
"""A statement and the types of its values."""
_numbers = count()


class _Known:
    """What is known of a connection."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        adapters = AdaptersMap(connection.adapters)
        adapters.register_loader("timestamptz", InstantLoader)
        arrays.register(adapters)
        self.adapter: abc.Transformer = Transformer(adapters)
        """Not the connection's own, which would keep it alive."""
        self.prepared: dict[_Key, bytes] = {}
        """Names of statements."""
        self.recurring: dict[bytes, tuple[Mapping[str, Any], _Bound]] = {}
        """By statement, with the values that it was last sent with."""
        self.answered_at = 0.0
        """See the function of this name."""


_connections: WeakKeyDictionary[AsyncConnection[Any], _Known] = WeakKeyDictionary()


class Answer(NamedTuple):
    """To one transaction. results: of its statements, in order; error: what went wrong and undid all of it, None: nothing did."""

    results: list[PGresult]
    error: psycopg.Error | None


@contextlib.asynccontextmanager
async def sent(connection: AsyncConnection[Any], *transactions: Sequence[Command]) -> AsyncIterator[Answers]:
    """Each a transaction of its own: what is wrong with one leaves the others alone. Read all answers, or the connection is closed.

    psycopg.Error: a value can't be sent, or the connection is lost.
    """
    answers = Answers(connection)
    answers.send(*transactions)
    try:
        yield answers
    finally:
        answers.close()


async def ask(connection: AsyncConnection[Any], commands: Sequence[Command]) -> list[PGresult]:
    """The answers to one transaction, in order. psycopg.Error: what is wrong with it, or the connection is lost."""
    async with sent(connection, commands) as answers:
        answer = await answers.next()
    if isinstance(answer.error, errors.InvalidSqlStatementName):
        return await ask(connection, commands)  # a rollback of psycopg's has deallocated all that was prepared
    if answer.error is not None:
        raise answer.error
    return answer.results


def answered_at(connection: AsyncConnection[Any]) -> float:
    """CLOCK_MONOTONIC seconds when a transaction of a pipeline was last answered, worked or not; 0: none was yet."""
    known = _connections.get(connection)
    return 0.0 if known is None else known.answered_at


class Answers:
    """Of a pipeline: binary values."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._known = _known(connection)
        self._left = 0
        """Synchronisation points that the server has not reached yet."""
        self._preparing: collections.deque[list[_Key]] = collections.deque()
        """What each transaction that was sent has to have prepared first; that goes ahead of it."""
        self._unsent = 0

    def send(self, *transactions: Sequence[Command]) -> None:
        """See `sent`."""
        if not transactions:
            return
        pgconn = self._pgconn
        bound = [[_bind(self._known, command) for command in commands] for commands in transactions]
        if pgconn.pipeline_status == pq.PipelineStatus.OFF:
            pgconn.enter_pipeline_mode()
        names = None if self._connection.prepare_threshold is None else self._known.prepared
        for commands in bound:
            self._preparing.append([] if names is None else self._prepare(commands, names))
            for command in commands:
                _send(pgconn, command, names)
            pgconn.pipeline_sync()
            self._left += 1
        self._unsent = pgconn.flush()

    def _prepare(self, commands: Sequence[_Bound], names: dict[_Key, bytes]) -> list[_Key]:
        """Sends the statements that this connection does not know yet, ahead of the transaction, which they are no part of."""
        missing = [
            key for key in {(command.statement, command.types): None for command in commands} if key not in names
        ]
        for key in missing:
            names[key] = b"cluster_%d" % next(_numbers)
            self._pgconn.send_prepare(names[key], *key)
            self._pgconn.pipeline_sync()
            self._left += 1
        return missing

    def close(self) -> None:
        """Ends the connection if there are answers that nobody has read."""
        if self._pgconn.pipeline_status != pq.PipelineStatus.OFF:
            self._pgconn.finish()

    async def next(self) -> Answer:
        """To the next transaction, in order."""
        refused = None
        for key in self._preparing.popleft():
            error = _error_of(self._connection, await self._until_sync())
            if error is not None:
                refused = refused or error
                self._known.prepared.pop(key, None)
        results = await self._until_sync()
        self._known.answered_at = time.monotonic()
        error = refused or _error_of(self._connection, results)
        if isinstance(error, errors.InvalidSqlStatementName):
            self._known.prepared.clear()
        return Answer(results, error)

    async def _until_sync(self) -> list[PGresult]:
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
    return _known(connection).adapter


def rows(adapter: abc.Transformer, result: PGresult) -> list[Any]:
    """Tuples, of one answer, as this adapter loads values."""
    adapter.set_pgresult(result)
    return adapter.load_rows(0, result.ntuples, tuple)


def _error_of(connection: AsyncConnection[Any], results: Sequence[PGresult]) -> psycopg.Error | None:
    """What the last of these answers says went wrong; None: nothing did."""
    if not results or results[-1].status != pq.ExecStatus.FATAL_ERROR:
        return None
    return errors.error_from_result(results[-1], encoding=connection.info.encoding)


# --- to the server ---


def _known(connection: AsyncConnection[Any]) -> _Known:
    known = _connections.get(connection)
    if known is None:
        known = _connections[connection] = _Known(connection)
    return known


def _bind(known: _Known, command: Command) -> _Bound:
    parameters, bound = known.recurring.get(command.statement, (None, None))
    if bound is not None and parameters == command.parameters:
        return bound
    statement, names = _positional(command.statement)
    adapter = known.adapter
    values = adapter.dump_sequence([command.parameters[name] for name in names], [PyFormat.AUTO] * len(names))
    bound = _Bound(statement, values, tuple(adapter.types or ()), adapter.formats or ())
    if command.recurs:
        known.recurring[command.statement] = command.parameters, bound
    return bound


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
