"""Proves that limits hold: eight nodes compete for types with a limit, as fast as they can, until enough has been claimed.

Two witnesses, either of which must see none too many. Jobs take a kernel lock per place under their limit, which says what
is performed at once; a trigger counts the running rows in the transaction of each claim, which says what is claimed at once.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests.fault.harness import Stage
from tests.support.nodes import log_tails
from tests.support.postgres import make_run_folder

NODES = 8
LIMITS = {"OneJob": 1, "ThreeJob": 3, "SixteenJob": 16}
TABLES = {name: f"{name.removesuffix('Job').lower()}_jobs" for name in LIMITS}
PATIENCE = 60.0
"""Seconds in which there must be another claim."""

SOURCE = """
import asyncio, fcntl, os
from cluster import Job

LOCKS, JOURNAL = {locks!r}, {journal!r}
handles = {{}}

def lock(name):
    '''None: somebody has it. Each try opens the file anew, so that jobs of one process exclude each other too.'''
    handle = os.open(f"{{LOCKS}}/{{name}}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle

async def hold_a_place(name, limit):
    for number in range(limit):
        place = lock(f"{{name}}.{{number}}")
        if place is not None:
            break
    else:
        number = -1
    pid = os.getpid()
    if pid not in handles:
        handles[pid] = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.write(handles[pid], f"{{name}} {{number}}\\n".encode())
    await asyncio.sleep(0.001)
    if place is not None:
        os.close(place)
"""
CLASS = """
class {name}(Job):
    max_concurrency = {limit}
    async def perform(self):
        await hold_a_place("{name}", {limit})
"""
COUNT = """
CREATE TABLE claims (job_type text, claimed integer, running integer);
CREATE FUNCTION count_claims() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    counted integer;
    together integer;
BEGIN
    SELECT count(*) INTO counted FROM fresh WHERE status = 'running';
    IF counted > 0 THEN
        EXECUTE format('SELECT count(*) FROM %s WHERE status = ''running''', TG_RELID::regclass) INTO together;
        INSERT INTO claims VALUES (TG_ARGV[0], counted, together);
    END IF;
    RETURN NULL;
END $$
"""
COUNT_TRIGGER = """
CREATE TRIGGER count_claims AFTER UPDATE ON {table} REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION count_claims({name})
"""


@dataclass
class Proof:
    """What was seen. highest: rows of the type that ran at once, at most."""

    claims: dict[str, int]
    highest: dict[str, int]
    executions: int
    without_place: int
    """Executions that found all places taken."""
    over: int
    """Claims after which too many rows ran."""
    seconds: float

    @property
    def broken(self) -> bool:
        return bool(self.without_place or self.over)

    def __str__(self) -> str:
        total = sum(self.claims.values())
        types = ", ".join(
            f"{self.claims[name]:,} of {name} ({self.highest[name]} of {limit} at once)"
            for name, limit in LIMITS.items()
        )
        return (
            f"{NODES} nodes, {total:,} claims in {self.seconds:.1f} s, {total / self.seconds:,.0f} a second: {types}\n"
            f"overshoot: {self.over} claims, {self.without_place} of {self.executions:,} executions"
        )


class LimitsStage(Stage):
    """Eight nodes of one worker process each, with jobs of their own and no other load."""

    PROCESSES = 1

    def __init__(self, folder: Path, bin_dir: Path | None) -> None:
        super().__init__(folder, bin_dir, NODES)
        self.source = SOURCE.format(locks=str(folder / "locks"), journal=str(self.journal))
        self.source += "".join(CLASS.format(name=name, limit=limit) for name, limit in LIMITS.items())

    def watch(self, connection: psycopg.Connection) -> None:
        connection.execute(COUNT)
        for name, table in TABLES.items():
            connection.execute(
                sql.SQL(COUNT_TRIGGER).format(table=sql.Identifier(table), name=sql.Literal(name))
            )  # fmt: skip


def prove_limits(claims: int, bin_dir: Path | None = None) -> Proof:
    """Returns once so many claims have committed. AssertionError: they do not come."""
    folder = make_run_folder()
    try:
        stage = LimitsStage(folder, bin_dir)
        with stage.open(), stage.connect() as connection:
            for table in TABLES.values():
                # As many of each type: how the claims are shared between them is not said.
                insert = "INSERT INTO {} (priority) SELECT 50 FROM generate_series(1, %s)"
                connection.execute(sql.SQL(insert).format(sql.Identifier(table)), [claims])
            begun = time.monotonic()
            _wait_for_claims(connection, claims)
            seconds = time.monotonic() - begun
            problems = stage.stop_nodes()
            assert not problems, problems
            return _proof(stage, connection, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_claims(connection: psycopg.Connection, claims: int) -> None:
    made, since = 0, time.monotonic()
    while made < claims:
        time.sleep(0.2)
        now = _claims(connection)
        if now > made:
            made, since = now, time.monotonic()
        assert time.monotonic() - since < PATIENCE, f"no claim for {PATIENCE:g} s\n{log_tails()}"


def _claims(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT coalesce(sum(claimed), 0)::integer FROM claims").fetchone()
    assert row is not None
    return int(row[0])


def _proof(stage: Stage, connection: psycopg.Connection, seconds: float) -> Proof:
    rows = connection.execute("SELECT job_type, claimed, running FROM claims").fetchall()
    places = [line.split()[1] for line in stage.journal.read_text().splitlines()]
    return Proof(
        {name: sum(claimed for of, claimed, _ in rows if of == name) for name in LIMITS},
        {name: max((running for of, _, running in rows if of == name), default=0) for name in LIMITS},
        len(places),
        places.count("-1"),
        sum(running > LIMITS[name] for name, _, running in rows),
        seconds,
    )
