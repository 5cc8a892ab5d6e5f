"""What a thousand nodes at rest ask Postgres for, statement by statement. No node runs: their rows and sessions are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from bench import processes
from bench.harness import SERVER_SETTINGS, Bench, table_of
from bench.jobs.noop import NoopJob
from bench.results import Results
from cluster import locks, statements
from cluster.embedded import disposable_server
from cluster.migration import migrate_jobs, migrate_schema

NODES = (100, 1000)
RUNNING = 16
"""Jobs that each node has, while sweeps are measured."""
WARM_UP, TIMES = 20, 500
PLANNING = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off"
"""As a node's sessions have it."""


def run(bench: Bench, results: Results) -> None:
    """CPU of Postgres for each statement that nodes at rest repeat, and for a NOTIFY, beside 100 and 1,000 nodes."""
    for _ in bench.rounds("crowd", 1):
        for number in NODES:
            with _server(bench, number) as url, ExitStack() as stack:
                connection = stack.enter_context(psycopg.connect(url, autocommit=True))
                migrate_schema(connection)
                migrate_jobs(connection, [NoopJob])
                _Crowd(connection, results, _nodes(url, stack, connection, number)).measure()


@contextmanager
def _server(bench: Bench, nodes: int) -> Iterator[str]:
    """Takes the four connections that each node would have, though only one of them is made."""
    settings = SERVER_SETTINGS | {"max_connections": str(4 * nodes + 20)}
    with disposable_server(bench.options.pg_bin, settings=settings) as server:
        yield server.url()


def _nodes(url: str, stack: ExitStack, connection: psycopg.Connection, number: int) -> list[dict[str, Any]]:
    """Their rows, as renew_lease takes them; each has a session that listens and holds the node's lock."""
    nodes = []
    for _ in range(number):
        node = uuid4()
        session = stack.enter_context(psycopg.connect(url, autocommit=True, application_name="jobcluster heartbeat"))
        session.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [locks.NODE, str(node)])
        session.execute("LISTEN cluster_doorbell")
        values = {
            "id": node, "lease": "30s", "running": 0, "slots": 64, "session_pid": session.info.backend_pid, "listen_pid": None,
            "draining": False, "trouble": Jsonb([]), "work": Jsonb([]),
        }  # fmt: skip
        connection.execute(
            statements.statement("register_node"),
            values
            | {
                "hostname": "host",
                "pid": 1,
                "version": "0",
                "code": "",
                "queues": ["*"],
                "jobs": [NoopJob.__name__],
                "before": None,
            },
        )
        nodes.append(values)
    return nodes


class _Crowd:
    """One number of nodes."""

    def __init__(self, connection: psycopg.Connection, results: Results, nodes: list[dict[str, Any]]) -> None:
        self._connection = connection
        self._results = results
        self._nodes = nodes
        self._variant = f"{len(nodes):,} nodes"
        self._postmaster = processes.postmaster_of(connection.info.backend_pid)
        connection.execute(PLANNING)
        connection.execute("VACUUM ANALYZE cluster.nodes")
        connection.prepare_threshold = 0

    def measure(self) -> None:
        """Each statement in turn."""
        first: UUID = self._nodes[0]["id"]
        table = table_of(NoopJob)
        oid = self._connection.execute("SELECT %s::regclass::oid::integer", [table]).fetchone()
        assert oid is not None
        look = {"table": oid[0], "key": None, "queues": None, "set_aside": [], "due_aside": []}
        self._of("renew_lease", lambda turn: self._nodes[turn % len(self._nodes)])
        self._of("look_for_jobs", lambda _: look, ("public", table))
        self._of("watch_doorbell", lambda _: {"class": locks.DOORBELL, "tables": [oid[0]]})
        self._of("list_claims", lambda _: {"node": first}, ("public", table))
        self._of("list_live_nodes", lambda _: {"class": locks.NODE})
        self._of("list_held_locks", lambda _: {"doorbell": locks.DOORBELL, "node": locks.NODE})
        self._of("is_oldest_node", lambda _: {"node": first})
        self._load_running(table)
        self._of("list_orphans", lambda _: {"set_aside": [], "limit": 1000}, ("public", table))
        self._time(
            "NOTIFY", lambda _: self._connection.execute("SELECT pg_notify('cluster_doorbell', '1')"), TIMES // 5
        )

    def _of(self, name: str, values: Callable[[int], dict[str, Any]], address: tuple[str, str] | None = None) -> None:
        text = statements.statement(name) if address is None else statements.for_table(name, address)
        self._time(name, lambda turn: self._connection.execute(text, values(turn)).statusmessage, TIMES)

    def _time(self, name: str, ask: Callable[[int], object], times: int) -> None:
        for turn in range(WARM_UP):
            ask(turn)
        before = processes.cpu_seconds(self._postmaster)
        for turn in range(times):
            ask(turn)
        after = processes.cpu_seconds(self._postmaster)
        if before is not None and after is not None:
            self._results.add(self._variant, name, "ms of CPU", (after - before) / times * 1000)

    def _load_running(self, table: str) -> None:
        """Of every node."""
        name, nodes = sql.Identifier(table), [node["id"] for node in self._nodes]
        insert = sql.SQL("INSERT INTO {} (number) SELECT generate_series(1, %s)").format(name)
        self._connection.execute(insert, [RUNNING * len(nodes)])
        claim = sql.SQL("UPDATE {} SET status = 'running', locked_at = now(), locked_by = (%s::uuid[])[id %% %s + 1]")
        self._connection.execute(claim.format(name), [nodes, len(nodes)])
        self._connection.execute(sql.SQL("VACUUM ANALYZE {}").format(name))
