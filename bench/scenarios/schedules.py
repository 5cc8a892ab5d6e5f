"""How late schedules fire, a few of them and a thousand at once, and what a hundred thousand cost that are not due."""

from __future__ import annotations

import time
from typing import Any, LiteralString

from psycopg import sql

from bench.harness import Bench, table_of
from bench.jobs.tick import TickJob
from bench.results import Results
from bench.scenarios.idle import SECONDS_TO_SETTLE, add_cpu_per_second
from bench.scenarios.producer import add_percentiles
from cluster import statements

FEW, AT_ONCE, BY_CRON = "10 a second", "1,000 at once", "1,000 at once, by cron"
WITHOUT, NOT_DUE = "no schedules", "100,000 not due"
NUMBER = 1000
SECONDS = 20.0
"""Of firing a few, and of each look at what rests; the thousand fire five times, and those of cron once."""
OCCURRENCES, APART, AHEAD = 5, 4, 3
"""Of the thousand; the seconds between two of them, and before the first."""


def run(bench: Bench, results: Results) -> None:
    """Lag of few schedules and of 1,000 due at once: claim of the job - due time; and what 100,000 cost that are not due."""
    seconds = results.parameters["seconds"] = bench.seconds(SECONDS)
    for _ in bench.rounds("schedules", 1):
        with bench.node("tick"):
            _few(bench, results, seconds)
            _at_once(bench, results)
            _at_once_by_cron(bench, results)
        _rest(bench, results, seconds)
    _clear(bench)


def _few(bench: Bench, results: Results, seconds: float) -> None:
    """Ten, a tenth of a second apart."""
    _clear(bench)
    for number in range(10):
        _insert(bench, 1, f"few {number}", "every", "'1 second'")
        time.sleep(0.1)
    time.sleep(seconds)
    _add_lag(bench, results, FEW)


def _at_once(bench: Bench, results: Results) -> None:
    _clear(bench)
    times = f"'{APART} seconds', date_trunc('second', now()) + interval '{AHEAD} seconds'"
    _insert(bench, NUMBER, "every", "every, starts_at", times)
    _wait(bench, OCCURRENCES * NUMBER, AHEAD + OCCURRENCES * APART + 60)
    _add_lag(bench, results, AT_ONCE)


def _at_once_by_cron(bench: Bench, results: Results) -> None:
    """At the next full minute."""
    _clear(bench)
    _insert(bench, NUMBER, "cron", "cron", "'* * * * *'")
    _wait(bench, NUMBER, 120)
    _add_lag(bench, results, BY_CRON)
    _clear(bench)


def _rest(bench: Bench, results: Results, seconds: float) -> None:
    """An idle node twice, the second time beside schedules of tomorrow."""
    for variant, number in ((WITHOUT, 0), (NOT_DUE, 100 * NUMBER)):
        _insert(bench, number, "later", "every", "'1 day'")
        bench.connection.execute("VACUUM ANALYZE cluster.schedules")
        with bench.node("tick") as node:
            time.sleep(min(SECONDS_TO_SETTLE, seconds))
            before, first = bench.cpu(node), _transactions(bench)
            time.sleep(seconds)
            after, last = bench.cpu(node), _transactions(bench)
        add_cpu_per_second(results, variant, before, after, seconds)
        results.add(variant, "transactions", "1/s", (last - first) / seconds)
        for name, parameters in (("list_due_schedules", {"limit": 1000}), ("find_next_schedule", {})):
            results.add(variant, name, "ms", _milliseconds(bench, name, parameters))


def _insert(bench: Bench, number: int, name: str, columns: LiteralString, values: LiteralString) -> None:
    bench.connection.execute(
        sql.SQL(
            "INSERT INTO cluster.schedules (name, job_table, {columns})"
            " SELECT {name} || ' ' || n, {table}::regclass, {values} FROM generate_series(1, {number}) AS n"
        ).format(
            columns=sql.SQL(columns),
            name=sql.Literal(name),
            table=sql.Literal(table_of(TickJob)),
            values=sql.SQL(values),
            number=number,
        )
    )


def _clear(bench: Bench) -> None:
    """The schedules; then, once nothing runs, jobs and history."""
    table = table_of(TickJob)
    bench.connection.execute("DELETE FROM cluster.schedules")
    bench.wait_until_finished(table)
    bench.connection.execute(sql.SQL("TRUNCATE {}, cluster.schedule_runs").format(sql.Identifier(table)))


def _wait(bench: Bench, occurrences: int, timeout: float) -> None:
    """Until so many have ended. Asked rarely."""
    query = sql.SQL("SELECT count(*) FROM cluster.schedule_runs WHERE finished_at IS NOT NULL")
    deadline = time.monotonic() + timeout
    while _value(bench, query) < occurrences:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{occurrences} occurrences of schedules did not come within {timeout:.0f} s")
        time.sleep(0.2)


def _add_lag(bench: Bench, results: Results, variant: str) -> None:
    """Milliseconds from the due time to the claim; by one clock, the server's."""
    query = sql.SQL(
        "SELECT extract(epoch FROM started_at - scheduled_for)::float8 * 1000 FROM {} WHERE started_at IS NOT NULL"
    ).format(sql.Identifier(table_of(TickJob)))
    add_percentiles(results, variant, [lag for (lag,) in bench.connection.execute(query)])


def _transactions(bench: Bench) -> int:
    """So far, of the whole database; an idle session reports them within some seconds."""
    return int(_value(bench, sql.SQL("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")))


def _milliseconds(bench: Bench, name: str, parameters: dict[str, Any]) -> float:
    """Of one execution, by Postgres's own account."""
    query = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(statements.statement(name))
    row = bench.connection.execute(query, parameters).fetchone()
    assert row is not None
    return float(row[0][0]["Execution Time"])


def _value(bench: Bench, query: sql.Composed | sql.SQL) -> int:
    row = bench.connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
