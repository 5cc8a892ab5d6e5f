"""What enqueueing costs: single rows by many clients, many rows by one, with the job table's triggers and without."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable
from contextlib import nullcontext

from psycopg import sql

from bench import bare
from bench.harness import Bench, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results

CLIENTS = (1, 8, 32)
SECONDS = 2
ROWS_PER_STATEMENT = 1000


def run(bench: Bench, results: Results) -> None:
    """INSERTs of single rows by 1, 8 and 32 clients, of many rows, and COPY."""
    for _ in bench.rounds("enqueue", 2):
        _single_rows(bench, results)
        _many_rows(bench, results)
        _copy(bench, results)


# --- single rows ---


def _single_rows(bench: Bench, results: Results) -> None:
    """The job table without a node, with one that performs the jobs, and with one that is not allowed to."""
    floors = _rates(bench, results, "INSERT, no triggers", bare.TABLE, {})
    table = table_of(NoopJob)
    for what, up, paused in (("no node", False, False), ("node at work", True, False), ("type paused", True, True)):
        bench.load(table, 0)
        bench.pause(table, paused=paused)
        with bench.node("noop") if up else nullcontext():
            _rates(bench, results, f"INSERT, {what}", table, floors)
        bench.pause(table, paused=False)


def _rates(bench: Bench, results: Results, variant: str, table: str, floors: dict[int, float]) -> dict[int, float]:
    rates = {}
    for clients in CLIENTS:
        rates[clients] = _pgbench(bench, table, clients)
        results.add(
            variant, f"{clients} client{'s' if clients > 1 else ''}", "rows/s", rates[clients], floors.get(clients)
        )
    return rates


def _pgbench(bench: Bench, table: str, clients: int) -> float:
    program = bench.program("pgbench")
    if program is None:
        raise RuntimeError("pgbench is missing: use the embedded Postgres, or put pgbench on the PATH")
    script = bench.board_path.with_name("insert.sql")
    insert = sql.SQL("INSERT INTO {} (number) VALUES (1);\n").format(sql.Identifier(table))
    script.write_text(insert.as_string(bench.connection))
    command = [str(program), "--no-vacuum", "--protocol=prepared", f"--client={clients}", f"--jobs={min(2, clients)}"]
    command += [f"--time={SECONDS}", f"--file={script}", bench.url]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    rate = re.search(r"^tps = ([\d.]+)", shown.stdout, re.MULTILINE)
    if shown.returncode != 0 or rate is None:
        raise RuntimeError(f"pgbench failed: {shown.stderr.strip()[-500:]}")
    return float(rate[1])


# --- many rows ---


def _many_rows(bench: Bench, results: Results) -> None:
    floor = _insert_many(bench, bare.TABLE)
    results.add("multi-row INSERT", "no triggers", "rows/s", floor)
    results.add("multi-row INSERT", "job table", "rows/s", _insert_many(bench, table_of(NoopJob)), floor)


def _insert_many(bench: Bench, table: str) -> float:
    """Statements of 1,000 rows, each a transaction."""
    bench.load(table, 0)
    statement = sql.SQL("INSERT INTO {} (number) SELECT unnest(%s::integer[])").format(sql.Identifier(table))
    numbers = list(range(ROWS_PER_STATEMENT))
    statements = max(1, bench.jobs() // ROWS_PER_STATEMENT)
    before = time.monotonic()
    for _ in range(statements):
        bench.connection.execute(statement, [numbers])
    return statements * ROWS_PER_STATEMENT / (time.monotonic() - before)


def _copy(bench: Bench, results: Results) -> None:
    floor = _bare_copy(bench)
    results.add("COPY of all rows", "no triggers", "rows/s", floor)
    made = [NoopJob(number=number) for number in range(bench.jobs())]
    results.add("COPY of all rows", "perform_many", "rows/s", _perform_many(bench, made), floor)
    to_make = (NoopJob(number=number) for number in range(bench.jobs()))
    results.add("COPY of all rows", "perform_many, a generator", "rows/s", _perform_many(bench, to_make), floor)


def _perform_many(bench: Bench, jobs: Iterable[NoopJob]) -> float:
    bench.load(table_of(NoopJob), 0)
    before = time.monotonic()
    with bench.connection.transaction():
        NoopJob.perform_many(bench.connection, jobs)
    return bench.jobs() / (time.monotonic() - before)


def _bare_copy(bench: Bench) -> float:
    """The text is made beforehand: only Postgres works."""
    bench.load(bare.TABLE, 0)
    text = "".join(f"{number}\n" for number in range(bench.jobs()))
    statement = sql.SQL("COPY {} (number) FROM STDIN").format(sql.Identifier(bare.TABLE))
    before = time.monotonic()
    with bench.connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(text)
    return bench.jobs() / (time.monotonic() - before)
