"""Several statements in one round trip."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, errors

from cluster.coordinator import pipeline
from cluster.coordinator.arrays import BigIntegers, PackedArray
from cluster.coordinator.pipeline import Command

CREATE = b"CREATE TABLE notes (id integer PRIMARY KEY, text text)"
ADD = b"INSERT INTO notes VALUES (%(id)s, %(text)s) RETURNING id"
COUNT = b"SELECT count(*) FROM notes"


@pytest.fixture(params=["prepared", "behind a pooler"])
async def connection(request: pytest.FixtureRequest, aconn: AsyncConnection) -> AsyncConnection:
    aconn.prepare_threshold = 0 if request.param == "prepared" else None
    await aconn.execute(CREATE)
    return aconn


async def ask(connection: AsyncConnection, *commands: tuple[bytes, dict[str, Any]]) -> list[list[Any]]:
    answers = await pipeline.ask(connection, [Command(*command) for command in commands])
    return [pipeline.rows(pipeline.adapter_of(connection), answer) for answer in answers]


async def test_all_answers_come_in_order(connection: AsyncConnection) -> None:
    for round_trip in range(3):
        first, second = 2 * round_trip, 2 * round_trip + 1
        answers = await ask(
            connection, (ADD, {"id": first, "text": None}), (ADD, {"id": second, "text": "ü"}), (COUNT, {})
        )
        assert answers == [[(first,)], [(second,)], [(second + 1,)]]
    assert await ask(connection) == []


async def test_placeholders_may_come_twice_and_percent_signs_are_kept(connection: AsyncConnection) -> None:
    statement = b"SELECT %(text)s::text LIKE 'a%%', %(number)s::integer + 1, %(text)s::text"
    assert await ask(connection, (statement, {"text": "abc", "number": 1, "other": 3})) == [[(True, 2, "abc")]]


async def test_a_statement_that_recurs_is_sent_with_the_values_of_its_command(connection: AsyncConnection) -> None:
    statement = b"SELECT %(number)s::bigint, %(ids)s::bigint[]"
    for number, ids in ((1, [1]), (1, [1]), (1, [2]), (2**40, [2]), (2**40, []), (1, [1])):
        command = Command(statement, {"number": number, "ids": BigIntegers(ids)}, recurs=True)
        async with pipeline.sent(connection, [command]) as round_trip:
            answer = await round_trip.next()
        assert pipeline.rows(pipeline.adapter_of(connection), answer.results[0]) == [(number, ids)]


async def test_what_recurs_is_bound_once(connection: AsyncConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = []

    def pack(array: BigIntegers) -> bytes:
        bound.append(array.values)
        return PackedArray.pack(array)

    monkeypatch.setattr(BigIntegers, "pack", pack)
    for ids in ([1], [1], [2]):
        command = Command(b"SELECT %(ids)s::bigint[]", {"ids": BigIntegers(ids)}, recurs=True)
        await pipeline.ask(connection, [command])
    assert bound == [[1], [2]]


async def test_values_of_another_size_are_of_another_type(connection: AsyncConnection) -> None:
    """The driver sends an integer as the smallest type that holds it."""
    for number in (1, 100_000, 2**40):
        assert await ask(connection, (b"SELECT %(number)s::bigint", {"number": number})) == [[(number,)]]


async def test_what_fails_undoes_all_and_is_the_last_answer(connection: AsyncConnection) -> None:
    commands = [Command(ADD, {"id": 1, "text": ""}), Command(ADD, {"id": 1, "text": ""}), Command(COUNT)]
    async with pipeline.sent(connection, commands) as round_trip:
        answer = await round_trip.next()
    assert len(answer.results) == 2
    assert isinstance(answer.error, errors.UniqueViolation)
    assert await ask(connection, (COUNT, {})) == [[(0,)]]


async def test_each_transaction_stands_or_fails_by_itself(connection: AsyncConnection) -> None:
    add, divide = Command(ADD, {"id": 1, "text": ""}), Command(b"SELECT 1 / 0")
    async with pipeline.sent(connection, [add], [divide, Command(COUNT)], [Command(COUNT)]) as round_trip:
        added = await round_trip.next()
        divided = await round_trip.next()
        counted = await round_trip.next()
    assert added.error is None
    assert isinstance(divided.error, errors.DivisionByZero)
    assert pipeline.rows(pipeline.adapter_of(connection), counted.results[0]) == [(1,)]


async def test_a_statement_that_cannot_be_prepared_leaves_the_other_transactions_alone(
    connection: AsyncConnection,
) -> None:
    add, missing = Command(ADD, {"id": 1, "text": ""}), Command(b"SELECT FROM missing")
    async with pipeline.sent(connection, [add], [Command(COUNT), missing], [Command(COUNT)]) as round_trip:
        added, refused, counted = [await round_trip.next() for _ in range(3)]
    assert added.error is None
    assert isinstance(refused.error, errors.UndefinedTable)
    assert pipeline.rows(pipeline.adapter_of(connection), counted.results[0]) == [(1,)]


async def test_more_may_be_sent_once_all_answers_are_read(connection: AsyncConnection) -> None:
    add, again = (Command(ADD, {"id": number, "text": ""}) for number in (1, 2))
    async with pipeline.sent(connection, [add]) as round_trip:
        await round_trip.next()
        round_trip.send([again], [add])
        added = await round_trip.next()
        refused = await round_trip.next()
        round_trip.send([Command(COUNT)])
        counted = await round_trip.next()
    assert added.error is None
    assert isinstance(refused.error, errors.UniqueViolation)
    assert pipeline.rows(pipeline.adapter_of(connection), counted.results[0]) == [(2,)]


async def test_who_does_not_read_all_answers_loses_the_connection(connection: AsyncConnection) -> None:
    """What comes next must not take them for its own."""
    async with pipeline.sent(connection, [Command(COUNT)], [Command(COUNT)]) as round_trip:
        await round_trip.next()
    assert connection.closed


async def test_a_statement_that_cannot_be_prepared_is_an_error_and_the_next_works(connection: AsyncConnection) -> None:
    for _ in range(2):
        with pytest.raises(errors.UndefinedTable, match="missing"):
            await ask(connection, (COUNT, {}), (b"SELECT FROM missing", {}))
    assert await ask(connection, (COUNT, {})) == [[(0,)]]


async def test_more_than_the_socket_takes_at_once_arrives(connection: AsyncConnection) -> None:
    long = "x" * 20_000_000
    answers = await ask(connection, (ADD, {"id": 1, "text": long}), (b"SELECT length(text), text FROM notes", {}))
    assert answers == [[(1,)], [(len(long), long)]]


async def test_what_a_rollback_has_deallocated_is_prepared_anew(connection: AsyncConnection) -> None:
    """psycopg's does, when something failed."""
    assert await ask(connection, (COUNT, {})) == [[(0,)]]
    await connection.execute("DEALLOCATE ALL")
    assert await ask(connection, (COUNT, {})) == [[(0,)]]
    await connection.execute("DEALLOCATE ALL")
    async with pipeline.sent(connection, [Command(COUNT)], [Command(COUNT)]) as round_trip:
        first = (await round_trip.next()).error
        await round_trip.next()
    assert (first is None) == (connection.prepare_threshold is None)
    assert await ask(connection, (COUNT, {}), (COUNT, {})) == [[(0,)], [(0,)]]


async def test_a_lost_connection_is_an_error(connection: AsyncConnection, conn: psycopg.Connection) -> None:
    conn.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        await ask(connection, (COUNT, {}))
    assert connection.closed


async def test_a_plan_whose_columns_have_changed_says_so(connection: AsyncConnection, conn: psycopg.Connection) -> None:
    """The session is made anew then, and with it what is prepared."""
    every: tuple[bytes, dict[str, Any]] = (b"SELECT * FROM notes", {})
    assert await ask(connection, every) == [[]]
    conn.execute("ALTER TABLE notes ADD COLUMN more text")
    if connection.prepare_threshold is None:
        assert await ask(connection, every) == [[]]
    else:
        with pytest.raises(errors.FeatureNotSupported):
            await ask(connection, every)


async def test_a_connection_that_is_closed_is_not_kept(database_url: str) -> None:
    connection = await AsyncConnection.connect(database_url, autocommit=True, prepare_threshold=0)
    assert await ask(connection, (b"SELECT %(text)s::text", {"text": "ü"})) == [[("ü",)]]
    await connection.close()
    gone = weakref.ref(connection)
    del connection
    gc.collect()
    assert gone() is None


async def test_nothing_to_send_leaves_the_connection_as_it_was(connection: AsyncConnection) -> None:
    async with pipeline.sent(connection):
        pass
    assert await ask(connection, (COUNT, {})) == [[(0,)]]
