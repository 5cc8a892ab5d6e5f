"""What `perform_later` and `perform_many` cost on each kind of session, beside an INSERT as one writes it with that library."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from bench.harness import Bench, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results
from tests.support.session_kinds import KINDS, settled

BATCHES, JOBS = 100, 10
"""The two take turns on one session, in one transaction, by batches of so many jobs; the best batch of each counts."""
MANY = 1000


def run(bench: Bench, results: Results) -> None:
    """perform_later and perform_many on each kind of session, beside its bare INSERT."""
    for _ in bench.rounds("sessions", 5):
        for kind in BARE:
            asyncio.run(_measure(bench, results, kind))


async def _measure(bench: Bench, results: Results, kind: str) -> None:
    insert = f"INSERT INTO {sql.Identifier(table_of(NoopJob)).as_string()} (number) VALUES ({{}}) RETURNING id"  # noqa: S608
    bare = BARE[kind]
    ways: dict[str, Callable[[Any], Any]] = {
        "INSERT": lambda session: bare(session, insert),
        "perform_later": lambda session: NoopJob(number=1).perform_later(session),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    jobs = [NoopJob(number=number) for number in range(MANY)]
    bench.load(table_of(NoopJob), 0)
    async with KINDS[kind](_url(bench)) as opened:
        for _ in range(BATCHES):
            for name, enqueue in ways.items():
                seconds[name].append(await _timed(enqueue, opened.session, JOBS))
        many = await _timed(lambda session: NoopJob.perform_many(session, jobs), opened.session, 1)
        await settled(opened.end(True))
    floor = min(seconds["INSERT"]) / JOBS
    for name, each in [*((name, min(of) / JOBS) for name, of in seconds.items()), ("perform_many", many / MANY)]:
        results.add(kind, name, "µs/job", each * 1e6, None if name == "INSERT" else floor * 1e6)


async def _timed(enqueue: Callable[[Any], Any], session: Any, times: int) -> float:
    before = time.perf_counter()
    for _ in range(times):
        await settled(enqueue(session))
    return time.perf_counter() - before


def _url(bench: Bench) -> str:
    """For libraries that know no other form."""
    given = {name: quote(str(value), safe="") for name, value in conninfo_to_dict(bench.url).items()}
    password = f":{given['password']}" if "password" in given else ""
    if given["host"].startswith(quote("/", safe="")):
        return f"postgresql://{given['user']}{password}@/{given['dbname']}?host={given['host']}&port={given['port']}"
    return f"postgresql://{given['user']}{password}@{given['host']}:{given['port']}/{given['dbname']}"


# --- an INSERT as one writes it; {} stands for the value ---


def _psycopg(session: Any, insert: str) -> Any:
    return session.execute(insert.format("%s"), [1]).fetchone()


async def _psycopg_async(session: Any, insert: str) -> Any:
    return await (await session.execute(insert.format("%s"), [1])).fetchone()


def _sqlalchemy(session: Any, insert: str) -> Any:
    from sqlalchemy import text

    return session.execute(text(insert.format(":number")), {"number": 1}).scalar_one()


async def _sqlalchemy_async(session: Any, insert: str) -> Any:
    from sqlalchemy import text

    return (await session.execute(text(insert.format(":number")), {"number": 1})).scalar_one()


def _django(session: Any, insert: str) -> Any:
    with session.cursor() as cursor:
        cursor.execute(insert.format("%s"), [1])
        return cursor.fetchone()


async def _asyncpg(session: Any, insert: str) -> Any:
    return await session.fetchval(insert.format("$1"), 1)


BARE: dict[str, Callable[[Any, str], Any]] = {
    "psycopg": _psycopg,
    "psycopg-async": _psycopg_async,
    "core-psycopg": _sqlalchemy,
    "core-psycopg2": _sqlalchemy,
    "core-pg8000": _sqlalchemy,
    "session-psycopg": _sqlalchemy,
    "async-core-asyncpg": _sqlalchemy_async,
    "async-session-psycopg": _sqlalchemy_async,
    "async-session-asyncpg": _sqlalchemy_async,
    "django": _django,
    "asyncpg": _asyncpg,
}
