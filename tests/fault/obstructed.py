"""A node dies, or is stopped, while something is wrong with two tables: the other types go on, and all ends well."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from cluster.privileges import OWN_TABLES
from tests.fault.harness import Stage
from tests.fault.journal import Job
from tests.fault.load import TABLES
from tests.fault.obstacles import OBSTACLES
from tests.fault.targets import busy_node
from tests.support.nodes import wait_until

ROLE = "node_role"
VICTIMS = ("FastJob", "SlowJob")
LISTED = """
SELECT array_agg(DISTINCT t ->> 'reason') FROM cluster.nodes, jsonb_array_elements(trouble) AS t WHERE state = 'live'
"""
TRUST = "local all all trust\nhost all all 127.0.0.1/32 trust\n"
KEPT = """
class KeptJob(Job):
    retention = timedelta(seconds=1)
    async def perform(self): ...
"""


class ObstacleStage(Stage):
    """Nodes have a role of their own, which may do what they need and no more. One more type keeps its rows for a second only."""

    def __init__(self, folder: Path, bin_dir: Path | None, nodes: int, *, short: bool = False) -> None:
        super().__init__(folder, bin_dir, nodes, short=short)
        self.source += KEPT

    def server_settings(self) -> dict[str, str]:
        return {"hba_file": str(self.folder / "hba.conf")}

    def start_server(self) -> None:
        (self.folder / "hba.conf").write_text(TRUST)
        (self.folder / "hba.conf").chmod(0o644)
        super().start_server()

    def watch(self, connection: psycopg.Connection) -> None:
        super().watch(connection)
        grant(connection, *TABLES.values(), "kept_jobs")
        connection.execute(f"GRANT INSERT ON trail TO {ROLE}".encode())

    def node_url(self, number: int) -> str:
        del number
        return f"postgresql://{ROLE}@127.0.0.1:{self.server.port}/postgres"

    def node_options(self, number: int) -> dict[str, Any]:
        del number
        return {"poll_interval": 1}

    def go_on(self, seconds: float, stall: float, *left_out: str) -> None:
        """For so long, jobs of types that are not left out begin all the time. stall: seconds without any that are let pass."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            before = self._starts(left_out)
            self.wait(stall)
            assert self._starts(left_out) > before, f"nothing but {', '.join(left_out)} began for {stall:g} s"

    def _starts(self, left_out: tuple[str, ...]) -> int:
        return sum(execution.job[0] not in left_out for execution in self.executions())


def grant(connection: psycopg.Connection, *tables: str) -> None:
    """A role for nodes, that may do what they need with these job tables."""
    statements = [f"CREATE ROLE {ROLE} LOGIN", f"GRANT USAGE ON SCHEMA cluster TO {ROLE}"]
    statements += [f"GRANT {', '.join(may)} ON cluster.{table} TO {ROLE}" for table, may in OWN_TABLES.items()]
    statements += [f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {ROLE}" for table in tables]
    for statement in statements:
        connection.execute(statement.encode())


def beside(name: str) -> Callable[[Stage], None]:
    """The scenario of an obstacle beside which a node dies."""
    return partial(_obstructed, name=name, tables=tuple(TABLES[victim] for victim in VICTIMS), end=_kill)


def drain_beside(name: str) -> Callable[[Stage], None]:
    """… beside which a node is told to stop, and another dies."""
    return partial(_obstructed, name=name, tables=tuple(TABLES[victim] for victim in VICTIMS), end=_drain_and_kill)


def prune_beside(name: str) -> Callable[[Stage], None]:
    """… of an obstacle to deleting rows that have been kept long enough."""
    return partial(_obstructed, name=name, tables=("kept_jobs",), end=_kill)


def _obstructed(stage: Stage, name: str, tables: tuple[str, ...], end: Callable[[Stage], None]) -> None:
    assert isinstance(stage, ObstacleStage)
    obstacle = OBSTACLES[name]
    living = len(stage.nodes)
    with stage.connect() as connection:
        with obstacle.stand(connection, *tables, role=ROLE):
            stage.fault()
            _enqueue(connection, tables)
            stage.go_on(4, obstacle.stall, *VICTIMS)
            if obstacle.reason:
                wait_until(lambda: is_told(connection, obstacle.reason), f"nodes tell of {obstacle.reason}", 15)
            end(stage)
            stage.go_on(6, obstacle.stall, *VICTIMS)
        if obstacle.fails:  # not before it is gone: the load goes on
            stage.may_fail |= set(_rows(connection))
        while sum(node.exit_code is None for node in stage.nodes) < living:
            stage.replace()  # not before: a node does not start without the privileges that it needs
        if tables == ("kept_jobs",):
            wait_until(lambda: _is_pruned(connection), "what may be deleted is deleted", 40)


def _rows(connection: psycopg.Connection) -> list[Job]:
    found = {victim: connection.execute(f"SELECT id FROM {TABLES[victim]}".encode()) for victim in VICTIMS}
    return [(victim, job_id) for victim, rows in found.items() for (job_id,) in rows]


def _enqueue(connection: psycopg.Connection, tables: tuple[str, ...]) -> None:
    """More of the rows that obstacles are about: some to be begun now, and some to be promoted in a second."""
    for table in tables:
        for soon in ("0 s", "1 s"):
            connection.execute(
                f"INSERT INTO {table} (run_at) SELECT now() + %s FROM generate_series(1, 30)".encode(), [soon]
            )


def is_told(connection: psycopg.Connection, reason: str) -> bool:
    _walk_now(connection)
    row = connection.execute(LISTED).fetchone()
    return row is not None and reason in (row[0] or [])


def _kill(stage: Stage) -> None:
    stage.fault()
    busy_node(stage).kill_all()


def _drain_and_kill(stage: Stage) -> None:
    drained = busy_node(stage)
    killed = busy_node(stage, drained)
    stage.fault()
    drained.terminate()
    killed.kill_all()
    assert drained.wait_exit(30) == 0


def _is_pruned(connection: psycopg.Connection) -> bool:
    """But for what could not be deleted, which is tried again in minutes only."""
    _walk_now(connection)
    return connection.execute("SELECT count(*) FROM kept_jobs WHERE id % 7 <> 0").fetchone() == (0,)


def _walk_now(connection: psycopg.Connection) -> None:
    """Pruning is in no hurry; this run is."""
    connection.execute("UPDATE cluster.prune_walks SET due_at = now() WHERE due_at > now() + interval '1 second'")
