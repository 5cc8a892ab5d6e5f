"""Every hot statement uses its index on a large table: with the session that nodes set up and with a plain one, on statistics
that are fresh, and on statistics from before the table was filled.

What is planned is the very statement that the driver has prepared, with the driver's parameter types.
"""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.numeric import Int8

from cluster import Job, statements
from cluster.coordinator import arrays
from cluster.coordinator.main import _prepare_planner
from cluster.job import definition
from cluster.migration import migrate_jobs

Kind = Literal["default", "named", "others"]
NONE = arrays.BigIntegers([])
NODE = uuid4()
ROWS = 200_000


class PlanJob(Job):
    number: int
    max_concurrency = None

    async def perform(self) -> None: ...


class PlanPerKeyJob(Job):
    number: int
    table = "plan_jobs"
    concurrency_key = "number"

    async def perform(self) -> None: ...


TABLE = definition(PlanJob).table
CLAIM, DUE, RUNNING, PRIMARY_KEY = f"{TABLE}_claim", f"{TABLE}_due", f"{TABLE}_running", f"{TABLE}_pkey"
OTHERS, QUEUE = f"{TABLE}_others", f"{TABLE}_queue"
OPEN, OPEN_OTHERS, OPEN_QUEUE = f"{TABLE}_open", f"{TABLE}_open_others", f"{TABLE}_open_queue"
PARKED, RUNNING_KEY = f"{TABLE}_parked", f"{TABLE}_running_key"
INDEX_OF: dict[Kind, str] = {"default": CLAIM, "named": QUEUE, "others": OTHERS}
OPEN_INDEX_OF: dict[Kind, str] = {"default": OPEN, "named": OPEN_QUEUE, "others": OPEN_OTHERS}
IN_ORDER = {*INDEX_OF.values(), *OPEN_INDEX_OF.values(), PARKED, DUE}
"""Indexes from which rows are taken in order."""
KEY = statements.Key("number", "bigint")

WAITING = (
    "INSERT INTO plan_jobs (number, queue, priority) "
    "SELECT n, CASE n % 5 WHEN 0 THEN 'default' ELSE 'q' || n % 5 END, 1 + n % 100 FROM generate_series(1, 3000) n"
)
REST = f"""
SET session_replication_role = replica;
INSERT INTO plan_jobs (number, status, finished_at)
    SELECT n, CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'succeeded' END::cluster.job_status, now() - interval '1 hour'
    FROM generate_series(1, {ROWS}) n;
INSERT INTO plan_jobs (number, status, run_at)
    SELECT n, CASE WHEN n % 2 = 0 THEN 'retry' ELSE 'scheduled' END::cluster.job_status, now() + (n - 50) * interval '1 second'
    FROM generate_series(1, 2000) n;
INSERT INTO plan_jobs (number, status, locked_at, locked_by, attempts_count)
    SELECT n, 'running', now(), '{NODE}', 1 FROM generate_series(1, 500) n;
SET session_replication_role = origin;
"""
EVERYTHING_WAITS = (
    "INSERT INTO plan_jobs (number, queue) SELECT n, CASE n % 5 WHEN 0 THEN 'default' ELSE 'q' || n % 5 END "
    f"FROM generate_series(1, {ROWS // 4}) n; ANALYZE plan_jobs; "
    "SET session_replication_role = replica; "
    "UPDATE plan_jobs SET status = 'succeeded', finished_at = now(); SET session_replication_role = origin"
)
FILLINGS = {
    "fresh": [WAITING, REST, "ANALYZE plan_jobs"],
    "of an empty table": ["ANALYZE plan_jobs", WAITING, REST],
    "from before anything waited": [REST, "ANALYZE plan_jobs", WAITING],
    "from when everything waited": [EVERYTHING_WAITS, WAITING, REST],
}


SOME_ARE_PARKED = "UPDATE plan_jobs SET parked = true WHERE status = 'not_started' AND number % 3 = 0"
ALL_ARE_PARKED = "UPDATE plan_jobs SET parked = true WHERE status = 'not_started'"
FILLINGS_PER_KEY = {
    "fresh": [WAITING, REST, SOME_ARE_PARKED, "ANALYZE plan_jobs"],
    "of an empty table": ["ANALYZE plan_jobs", WAITING, REST, SOME_ARE_PARKED],
    "from before anything was parked": [WAITING, REST, "ANALYZE plan_jobs", ALL_ARE_PARKED],
    "from when everything was parked": [WAITING, REST, ALL_ARE_PARKED, "ANALYZE plan_jobs"],
}


@dataclass(frozen=True)
class Hot:
    """A hot statement with the values it is run with, and the only indexes of the job table that it may use: all of them."""

    name: str
    values: dict[str, Any]
    indexes: set[str]
    key: statements.Key | None = None
    kind: Kind = "default"


def hot_statements(table: int, running: list[tuple[int, Any]]) -> list[Hot]:
    """running: id and locked_at of jobs that NODE holds."""
    ids = arrays.BigIntegers([job_id for job_id, _ in running])
    times = arrays.Timestamps([struct.pack(">q", microseconds) for _, microseconds in running])
    count = len(running)
    claim = {
        "node": NODE, "table": table, "queue": "q1", "priority": 50, "slots": 20, "demand": 100, "max_attempts": 10,
        "set_aside": NONE, "from_priority": 0, "from_run_at": None, "from_id": Int8(0), "only": None, "whole": 1,
    }  # fmt: skip
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    from_head = {**claim, "from_priority": 10, "from_run_at": an_hour_ago, "from_id": Int8(70_000)}
    places = {
        "table": table, "queue": ["q1", "default", None], "priority": [1, 50, 60], "run_at": [an_hour_ago, None, None],
        "id": [1, 0, 0], "due_from": an_hour_ago, "set_aside": NONE, "due_aside": NONE,
    }  # fmt: skip
    aside = {**claim, "set_aside": arrays.BigIntegers([1, 70_000])}
    only = {**claim, "only": arrays.BigIntegers([5, 10])}
    look = {"table": table, "key": None, "queues": None, "set_aside": NONE, "due_aside": NONE}
    bounded = {CLAIM, OTHERS, QUEUE, DUE}
    promote = {"limit": 1000, "due_from": None, "set_aside": NONE, "only": None}
    held = {"node": NODE, "id": ids, "locked_at": times}
    outcomes = {
        **held, "status": ["succeeded"] * count, "delay": arrays.Floats([None] * count), "error": [None] * count,
        "attempts": arrays.Integers([0] * count), "crashes": arrays.Integers([0] * count), "begun": arrays.Floats([0.1] * count),
        "failure": ["retry"] * count, "fingerprint": ["timeout"] * count,
    }  # fmt: skip
    swap = {**claim, **held, "limit": 16, "begun": outcomes["begun"]}
    retention = {"retention": timedelta(minutes=1), "retention_failed": None}
    verdict, lost = {"how": "now", "reason": None, "fingerprint": ""}, {"id": ids, "dead": [NODE], "crashed": [NODE]}
    return [
        Hot("look_for_jobs", look, {CLAIM, OTHERS, QUEUE, DUE, RUNNING}),
        Hot("look_for_jobs", {**look, "queues": ["q1", "default"]}, {CLAIM, OTHERS, QUEUE, DUE, RUNNING}),
        Hot("look_from_bounds", places, bounded),
        Hot("look_from_bounds", {**places, "run_at": [None] * 3, "due_from": None}, bounded),
        *(
            Hot(name, values, {index, PRIMARY_KEY} | ({RUNNING} if name == "claim_limited_jobs" else set()), kind=kind)
            for kind, index in INDEX_OF.items()
            for name in ("claim_jobs", "claim_limited_jobs")
            for values in (claim, from_head, aside, only)
        ),
        *(
            Hot("swap_limited_jobs", values, {index, PRIMARY_KEY}, kind=kind)
            for kind, index in INDEX_OF.items()
            for values in (swap, {**swap, "set_aside": aside["set_aside"]}, {**swap, **from_head})
        ),
        *(Hot("list_claimable_jobs", claim, {index}, kind=kind) for kind, index in INDEX_OF.items()),
        Hot("list_due_jobs", {"set_aside": NONE, "limit": 1000}, {DUE}),
        Hot("finish_jobs", outcomes, {PRIMARY_KEY}),
        Hot("finish_succeeded_jobs", {**held, "begun": outcomes["begun"]}, {PRIMARY_KEY}),
        Hot("delete_finished_jobs", held, {PRIMARY_KEY}),
        Hot("list_held_claims", held, {PRIMARY_KEY}),
        Hot("list_claims", {"node": NODE}, {RUNNING}),
        Hot("release_claim", {**verdict, "id": running[0][0], "locked_at": an_hour_ago, "node": NODE}, {PRIMARY_KEY}),
        Hot("list_orphans", {"limit": 1000, "set_aside": NONE}, {RUNNING}),
        Hot(
            "rescue_jobs",
            {**verdict, **lost, "max_attempts": 10, "max_crashes": 3},
            {PRIMARY_KEY},
        ),
        Hot("promote_jobs", promote, {DUE, PRIMARY_KEY}),
        Hot("promote_jobs", {**promote, "due_from": an_hour_ago}, {DUE, PRIMARY_KEY}),
        Hot("promote_jobs", {**promote, "only": arrays.BigIntegers([5, 10])}, {DUE, PRIMARY_KEY}),
        Hot("find_expired_jobs", {**retention, "after": 1000, "window": 5000}, {PRIMARY_KEY}),
        Hot("prune_jobs", {"table": table, "id": list(range(1000, 1500))}, {PRIMARY_KEY}),
    ]


def hot_statements_per_key(table: int) -> list[Hot]:
    claim = {
        "node": NODE, "table": table, "queue": "q1", "priority": 50, "slots": 20, "demand": 100, "max_attempts": 10,
        "set_aside": NONE, "key": "number", "keys": ["3", "6"], "reach": 400, "only": None, "whole": 1,
    }  # fmt: skip
    look = {"table": table, "key": "number", "queues": None, "set_aside": NONE, "due_aside": NONE}
    start = {"table": table, "key": "number", "after": None, "limit": 500}
    return [
        Hot("look_for_jobs", look, {OPEN, OPEN_OTHERS, OPEN_QUEUE, DUE, RUNNING}, KEY),
        *(
            Hot("claim_keyed_jobs", claim, {index, PARKED, RUNNING_KEY, PRIMARY_KEY}, KEY, kind)
            for kind, index in OPEN_INDEX_OF.items()
        ),
        Hot("find_parked_keys", start, {PARKED, RUNNING_KEY}, KEY),
        Hot("find_parked_keys", {**start, "after": "3"}, {PARKED, RUNNING_KEY}, KEY),
    ]


@pytest.mark.parametrize("statistics", FILLINGS)
async def test_hot_statements_use_their_indexes(
    statistics: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    table = _fill(conn, PlanJob, FILLINGS[statistics])
    await _check(aconn, hot_statements(table, conn.execute(HELD).fetchall()))


@pytest.mark.parametrize("statistics", FILLINGS_PER_KEY)
async def test_hot_statements_of_a_limit_per_key_use_their_indexes(
    statistics: str, conn: psycopg.Connection, aconn: psycopg.AsyncConnection
) -> None:
    table = _fill(conn, PlanPerKeyJob, FILLINGS_PER_KEY[statistics])
    await _check(aconn, hot_statements_per_key(table))


def _fill(conn: psycopg.Connection, job_class: type[Job], filling: list[str]) -> int:
    """Returns the table's oid."""
    migrate_jobs(conn, [job_class])
    conn.execute("ALTER TABLE plan_jobs SET (autovacuum_enabled = false)")
    for statement in filling:
        conn.execute(statement.encode())
    found = conn.execute("SELECT 'plan_jobs'::regclass::oid").fetchone()
    assert found is not None
    table: int = found[0]
    return table


async def _check(connection: psycopg.AsyncConnection, hot: list[Hot]) -> None:
    arrays.register(connection)
    connection.prepare_threshold = 0
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    faults = [f"plain session: {fault}" for statement in hot async for fault in _faults(connection, statement)]
    await _prepare_planner(connection)
    faults += [f"a node's session: {fault}" for statement in hot async for fault in _faults(connection, statement)]
    assert not faults, "\n\n".join(faults)


HELD = """
SELECT id, (extract(epoch FROM locked_at - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint
FROM plan_jobs WHERE status = 'running' LIMIT 300
"""


async def _faults(connection: psycopg.AsyncConnection[Any], hot: Hot) -> AsyncIterator[str]:
    plan = await _plan(connection, hot)
    for fault in _plan_faults(plan, hot.indexes):
        yield f"{hot.name} {fault}\n{plan}"


async def _plan(connection: psycopg.AsyncConnection[Any], hot: Hot) -> str:
    """EXPLAIN of the statement as the driver has just prepared it."""
    columns = tuple(definition(PlanJob).column_names) if hot.name.startswith(("claim_", "swap_")) else ()
    statement = statements.for_table(hot.name, (TABLE,), columns, hot.key, hot.kind)
    await connection.execute("DEALLOCATE ALL")
    async with connection.transaction(force_rollback=True):
        await connection.execute("SELECT set_config('cluster.claim', 'true', true)", prepare=False)  # as take_turn does
        await connection.execute(statement, hot.values, binary=True)
        prepared = await connection.execute(
            "SELECT name, parameter_types::text[] FROM pg_prepared_statements WHERE statement LIKE %s",
            [f"%{TABLE}%"],
            prepare=False,
        )
        row = await prepared.fetchone()
        assert row is not None, f"{hot.name} was not prepared"
        arguments = _arguments(statement.decode(), hot.values, row[1])
        explain = sql.SQL("EXPLAIN EXECUTE {} ({})").format(sql.Identifier(row[0]), sql.SQL(", ").join(arguments))
        lines = await connection.execute(explain, prepare=False)
        return "\n".join(line for (line,) in await lines.fetchall())


def _arguments(statement: str, values: dict[str, Any], types: list[str]) -> Iterator[sql.Composable]:
    """The values in the order in which the driver numbers its parameters, as literals of the prepared types."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    for name, type_name in zip(names, types, strict=True):
        value = values[name]
        plain = value.values if isinstance(value, arrays.PackedArray) else value
        if isinstance(value, arrays.Timestamps):
            plain = ["2026-01-01" for _ in value.values]  # only planned, never run
        yield sql.SQL("{}::{}").format(_literal(plain), sql.SQL(type_name))


def _literal(value: Any) -> sql.Literal:
    return sql.Literal(str(value) if isinstance(value, UUID) else value)


SCAN = re.compile(
    r"(?:(?P<seq>(?:Parallel )?Seq Scan)|(?P<index>Index(?: Only)? Scan(?: Backward)?) using (?P<used>\w+)|"
    rf"(?P<heap>Bitmap Heap Scan)) on {TABLE}\b"
)
BITMAP = re.compile(r"Bitmap Index Scan on (?P<used>\w+)")


def _plan_faults(plan: str, indexes: set[str]) -> Iterator[str]:
    """What is wrong with how the plan reads the job table."""
    lines = plan.splitlines()
    used = set()
    for place, line in enumerate(lines):
        if line.startswith("JIT:"):
            yield "is compiled, which takes longer than any round trip may"
        scan, bitmap = SCAN.search(line), BITMAP.search(line)
        if scan and scan["seq"]:
            yield "scans the whole table"
        index = scan["used"] if scan and scan["used"] else bitmap["used"] if bitmap else None
        if index is None:
            continue
        used.add(index)
        if index == PRIMARY_KEY and "Index Cond" not in lines[place + 1]:
            yield "reads the whole primary key"
        if index in IN_ORDER and (bitmap or any("Sort" in above for above in _parents(lines, place))):
            yield f"does not take rows in the order of {index}"
    if used != indexes:
        yield f"uses {sorted(used)}, not {sorted(indexes)}"


def _parents(lines: list[str], place: int) -> Iterator[str]:
    """The nodes above a line, up to the next Limit, which is what an order is for."""
    depth = _depth(lines[place])
    for line in reversed(lines[:place]):
        if "->" in line and _depth(line) < depth:
            depth = _depth(line)
            if "->  Limit" in line:
                return
            yield line


def _depth(line: str) -> int:
    return line.find("->") if "->" in line else 0
