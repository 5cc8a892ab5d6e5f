"""The coordinator's connections when they are lost."""

from __future__ import annotations

import psycopg
import pytest
from structlog.testing import capture_logs

from cluster.coordinator.main import _prepare_planner
from cluster.coordinator.session import Session, TransientDatabaseError


async def test_a_lost_session_has_ended_on_the_server_before_its_successor_works(database_url: str) -> None:
    """Otherwise what it had sent could still commit, and what it had locked would stay so."""
    session = Session(lambda: database_url, "test")
    with pytest.raises(TransientDatabaseError) as raised:
        async with session.use(0.2) as connection:
            await connection.execute("SELECT pg_sleep(60)")
    assert raised.value.silent
    async with session.use() as connection:
        assert session.alone
        running = await connection.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
        assert await running.fetchone() == (0,)
    await session.close()


@pytest.mark.parametrize(("setting", "said"), [("on", []), ("off", ["commits_not_durable"])])
async def test_commits_that_a_crash_may_undo_are_warned_of(
    aconn: psycopg.AsyncConnection, setting: str, said: list[str]
) -> None:
    aconn.prepare_threshold = None  # as behind a pooler
    await aconn.execute(f"SET synchronous_commit = {setting}".encode())
    with capture_logs() as lines:
        await _prepare_planner(aconn)
    assert [line["event"] for line in lines] == said
