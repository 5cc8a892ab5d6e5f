"""The functions of docs/enqueueing.md do what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from cluster.migration import migrate_jobs
from tests.support.session_kinds import KINDS, async_orm, orm

PAGE = Path(__file__).parents[2] / "docs/enqueueing.md"


@pytest.fixture
def page(conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of all blocks of the page. Any: of their names."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look annotations up
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), vars(module))
    conn.execute("CREATE TABLE customers (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)")
    migrate_jobs(conn, [module.WelcomeJob])
    return module


async def test_each_way_of_signing_up_enqueues(page: Any, conn: psycopg.Connection, database_url: str) -> None:
    async with orm(Session, "psycopg")(database_url) as opened:
        page.sign_up(opened.session, "a")
    async with async_orm(AsyncSession, "asyncpg")(database_url) as opened:
        await page.sign_up_async(opened.session, "b")
    async with KINDS["django"](database_url) as opened:
        page.sign_up_in_django("c")
        opened.end(True)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        await page.sign_up_with_asyncpg(pool, "d")
    connection = psycopg2.connect(database_url)
    page.sign_up_with_psycopg2(connection, "e")
    connection.close()
    found = conn.execute("SELECT name FROM welcome_jobs JOIN customers ON customers.id = customer_id ORDER BY name")
    assert [name for (name,) in found] == ["a", "b", "c", "d", "e"]


async def test_whoever_has_committed_may_wait(page: Any, conn: psycopg.Connection, database_url: str) -> None:
    conn.execute("CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS"
                 " $$ BEGIN PERFORM cluster.cancel('welcome_jobs', NEW.id); RETURN NEW; END $$")  # fmt: skip
    conn.execute("CREATE TRIGGER end_it AFTER INSERT ON welcome_jobs FOR EACH ROW EXECUTE FUNCTION end_it()")
    async with orm(Session, "psycopg")(database_url) as opened:
        assert page.welcome_and_wait(opened.session, 1) == "cancelled"
