"""docs/adapters.md: the adapter that it shows conforms, and the suite finds what is wrong with others."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import psycopg
import pytest

from cluster import Job, migrate
from cluster.sessions import Async, Row, Sync, numbered
from cluster.testing import assert_enqueued, check_async_session_adapter, check_session_adapter

PAGE = (Path(__file__).parents[2] / "docs/adapters.md").read_text(encoding="utf-8")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the page's blocks. Any: of its names."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/adapters.md", "exec", dont_inherit=True), vars(module))
    return module


class NoteJob(Job):
    text: str

    def perform(self) -> None: ...


def test_the_adapter_of_the_page_conforms_and_is_a_session(page: Any, database_url: str) -> None:
    page.test_psycopg2_is_a_session(database_url)
    migrate(database_url, [NoteJob])
    with contextlib.closing(page.psycopg2.connect(database_url)) as connection:
        session: Sync = page.Psycopg2Session(connection)
        job = NoteJob(text="x").perform_later(session)
        assert_enqueued(session, NoteJob, text="x")
        assert job.cancel(session) == "cancelled"


class AsyncpgSession:
    """As of an application that has its own."""

    placeholder = "$1"

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.transaction: Any = None

    async def row(self, statement: str, values: Sequence[Any]) -> Row:
        if self.transaction is None:
            self.transaction = self.connection.transaction()
            await self.transaction.start()
        row = await self.connection.fetchrow(numbered(statement), *values)
        return None if row is None else tuple(row)

    def in_transaction(self) -> bool:
        return self.transaction is not None

    async def look(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return await self.row(statement, values)
        finally:
            await self.end(False)

    def database(self) -> str | None:
        return None

    async def end(self, commit: bool) -> None:
        transaction, self.transaction = self.transaction, None
        await (transaction.commit() if commit else transaction.rollback())


async def test_an_async_adapter_conforms_and_is_awaited(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)

    async def opened() -> AsyncpgSession:
        return AsyncpgSession(connection)

    await check_async_session_adapter(opened, lambda session, commit: session.end(commit), database_url)
    migrate(database_url, [NoteJob])
    session: Async = AsyncpgSession(connection)
    await NoteJob(text="x").perform_later(session)
    await assert_enqueued(session, NoteJob, text="x")
    await connection.close()


class GoodSession:
    placeholder = "%s"

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def row(self, statement: str, values: Sequence[Any]) -> Row:
        return self.connection.execute(statement.encode(), values).fetchone()

    def in_transaction(self) -> bool:
        return self.connection.info.transaction_status != 0

    def look(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return self.row(statement, values)
        finally:
            self.connection.rollback()

    def database(self) -> str | None:
        return self.connection.info.dbname


class Commits(GoodSession):
    def row(self, statement: str, values: Sequence[Any]) -> Row:
        row = super().row(statement, values)
        self.connection.commit()
        return row


class NeverSays(GoodSession):
    def in_transaction(self) -> bool:
        return False


class LooksAndStays(GoodSession):
    def look(self, statement: str, values: Sequence[Any]) -> Row:
        return self.row(statement, values)


class HidesErrors(GoodSession):
    def row(self, statement: str, values: Sequence[Any]) -> Row:
        try:
            return super().row(statement, values)
        except psycopg.Error:
            raise RuntimeError("something went wrong") from None


class TextOnly(GoodSession):
    def row(self, statement: str, values: Sequence[Any]) -> Row:
        row = super().row(statement, values)
        return None if row is None else [None if value is None else str(value) for value in row]


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (GoodSession, ""),
        (Commits, "row begins a transaction if there is none, and leaves it open"),
        (NeverSays, "row begins a transaction if there is none"),
        (LooksAndStays, "look leaves the session in no transaction"),
        (HidesErrors, "what Postgres says has to be found in the error, RuntimeError"),
        (TextOnly, "row sends values as they are"),
    ],
)
def test_the_suite_names_what_an_adapter_lacks(adapter: type[GoodSession], said: str, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = ""
        try:
            check_session_adapter(
                lambda: adapter(connection),
                lambda session, commit: connection.commit() if commit else connection.rollback(),
                database_url,
            )
        except AssertionError as error:
            found = str(error)
    assert found.startswith(said)
    assert bool(found) == bool(said)
