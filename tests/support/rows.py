"""Rows of job tables in tests: insert them, wait for them, and see what a node says is wrong with their types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.support.nodes import NodeProcess, wait_for, wait_until

REFUSE = """
CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {condition} THEN
        RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()
"""


def run(connection: psycopg.Connection, text: str, *parameters: object) -> list[Any]:  # Any: rows of any statement
    """Its rows, if it has some."""
    cursor = connection.execute(text.encode(), parameters or None)
    return cursor.fetchall() if cursor.description else []


def insert(connection: psycopg.Connection, table: str, *labels: str, **columns: object) -> list[int]:
    """One job for each label, in one statement, all with the same values in other columns."""
    names = sql.SQL("").join(sql.SQL(", {}").format(sql.Identifier(name)) for name in columns)
    values = sql.SQL("").join(sql.SQL(", {}").format(sql.Literal(value)) for value in columns.values())
    query = sql.SQL("INSERT INTO {} (label{}) SELECT label{} FROM unnest({}::text[]) AS label RETURNING id")
    rows = connection.execute(query.format(sql.Identifier(table), names, values, sql.Literal(list(labels))))
    return [job_id for (job_id,) in rows]


def wait_status(
    connection: psycopg.Connection, table: str, status: str, ids: Sequence[int], timeout: float = 20
) -> None:
    """Until all of these have the status."""
    query = (
        "SELECT bool_and(status = %s), array_agg((id, status, attempts_count, last_error)::text) FILTER (WHERE status <> %s) "
        f"FROM {table} WHERE id = ANY (%s)"
    )
    wait_for(connection, query, [status, status, list(ids)], timeout)


def others_go_on(connection: psycopg.Connection, *tables: str, timeout: float = 5) -> None:
    """Jobs of these types, which have nothing to do with what is wrong, begin and end as ever."""
    for table in tables or ("good_jobs",):
        ((job_id,),) = run(connection, f"INSERT INTO {table} DEFAULT VALUES RETURNING id")
        wait_status(connection, table, "succeeded", [job_id], timeout)


def refuse(connection: psycopg.Connection, table: str, condition: str, code: str = "P0001") -> None:
    """From now on a trigger refuses updates for which the condition holds, which is about OLD and NEW."""
    run(connection, REFUSE.format(table=table, condition=condition, code=code))


def refuse_no_more(connection: psycopg.Connection, table: str) -> None:
    run(connection, f"DROP FUNCTION refuse_{table} CASCADE")


def wait_trouble(
    node: NodeProcess, reason: str, job_type: str = "OddJob", *, there: bool = True, timeout: float = 20
) -> None:
    """Until the gauge has it, or no longer."""
    name = f'cluster_trouble{{job_type="{job_type}",reason="{reason}"}}'
    wait_until(lambda: bool(node.metrics().get(name, 0.0)) == there, f"{name} is {there}", timeout)


def cpu_seconds(pid: int) -> float:
    """Of this process alone, since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def peak_megabytes(pid: int) -> int:
    """The most memory that it has ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
