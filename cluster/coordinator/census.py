"""Counts what waits and runs in the whole cluster, for the gauges that one node at a time shows: the one that has lived longest.

Reads only. A census costs each table a few index probes, bounded counts and its size, whatever has finished or
waits there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import AsyncConnection

from cluster import events, metrics, statements
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.pipeline import Command
from cluster.coordinator.session import Session, TransientDatabaseError
from cluster.coordinator.survey import ask_each
from cluster.coordinator.trouble import Hold, Troubles
from cluster.metrics import Samples
from cluster.statements import Key

INTERVAL = 15.0
"""Seconds between two censuses."""
MOST = 10_000
"""Jobs of one table, status and queue that are counted, where there are few queues."""
STATES = ("live", "draining", "silent", "lost", "stopped")


class Count(NamedTuple):
    """Of one table. age: seconds for which the oldest job that is ready has waited, None: none is ready. bound: see count_jobs."""

    queue: str
    status: str
    age: float | None
    jobs: int
    bound: int


class Size(NamedTuple):
    """Of one table: rows as the statistics have it, and bytes on disk. bytes None: it was dropped a moment ago."""

    live: int
    dead: int
    bytes: int | None


class Serving(NamedTuple):
    """Nodes of one kind. shown: their state, "silent" where the lease is over."""

    shown: str
    jobs: list[str]
    queues: list[str]
    nodes: int

    def serves(self, job_type: str, queue: str) -> bool:
        return self.shown == "live" and job_type in self.jobs and not {"*", queue}.isdisjoint(self.queues)


class _Table:
    """One job table, with or without a class on this node. limit None: it has none, or one for each value of its key."""

    def __init__(self, troubles: Troubles, job_type: str) -> None:
        self.job_type = job_type
        self.hold = Hold(troubles, job_type)
        """It can't be counted."""
        self.address: tuple[str, str] = ("", "")
        self.oid = 0
        self.key: Key | None = None
        self.limit: int | None = None
        self.is_paused = False

    def count(self) -> Command:
        return Command(statements.for_table("count_jobs", self.address, key=self.key), {"most": MOST})

    def measure(self) -> Command:
        return Command(statements.text("measure_table").encode(), {"table": self.oid})


class Census:
    """`tick` is one. Shares the finish connection, between batches. lease: this node's at the moment, None: it has none."""

    def __init__(self, session: Session, troubles: Troubles, lease: Callable[[], Lease | None]) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._troubles = troubles
        self._lease = lease
        self._tables: dict[str, _Table] = {}
        self._has_told = False
        """That it can't see other roles' transactions."""

    async def tick(self) -> float:
        """Returns the seconds until the next one. Figures that can't be had now are not shown: old ones would mislead."""
        try:
            lease = self._lease()
            if lease is not None and await self._is_ours(lease):
                await self._take()
            else:
                metrics.cluster_wide.show({})
        except (TransientDatabaseError, psycopg.Error):
            metrics.cluster_wide.show({})
            raise
        return INTERVAL

    async def _is_ours(self, lease: Lease) -> bool:
        async with self._session.use() as connection:
            before = time.time()
            cursor = await connection.execute(statements.statement("is_oldest_node"), {"node": lease.node})
            row = await cursor.fetchone()
        assert row is not None
        is_ours, database_time = row
        metrics.clock_offset.set(database_time - (before + time.time()) / 2)
        return bool(is_ours)

    async def _take(self) -> None:
        async with self._session.use() as connection:
            nodes = [Serving(*row) for row in await _rows(connection, "list_serving_nodes")]
            ((oldest, sees_all),) = await _rows(connection, "find_oldest_transaction")
            paused = [name for (name,) in await _rows(connection, "list_paused_queues")]
            schedules = dict(await _rows(connection, "count_schedules", most=MOST))
            self._find_tables(await _rows(connection, "list_counted_types"))
        if not sees_all and not self._has_told:
            self._has_told = True
            events.statistics_hidden()
        questions = {table: table.count() for table in self._tables.values() if table.hold.is_over}
        answers = await ask_each(self._session, questions)
        for table in answers:
            table.hold.end()
        counts = {table: [Count(*row) for row in rows] for table, rows in answers.items()}
        sizes = await ask_each(self._session, {table: table.measure() for table in counts})
        metrics.cluster_wide.show(
            {
                **_of_jobs(counts),
                **_of_nodes(nodes, counts),
                **_of_pauses(self._tables.values(), paused),
                **_of_sizes({table: Size(*rows[0]) for table, rows in sizes.items()}),
                "cluster_oldest_transaction_seconds": {(): oldest or 0.0},
                "cluster_schedules_overdue": {(): schedules.pop("overdue")},
                "cluster_schedules": {(state,): count for state, count in schedules.items()},
            }
        )

    def _find_tables(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for gone in self._tables.keys() - {name for name, *_ in rows}:
            self._tables.pop(gone).hold.end()
        for name, schema, relation, oid, key, limit, is_paused in rows:
            table = self._tables.setdefault(name, _Table(self._troubles, name))
            table.address, table.oid, table.limit, table.is_paused = (schema, relation), oid, limit, is_paused
            table.key = None if key is None else Key(key, "")


async def _rows(connection: AsyncConnection[Any], name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statements.statement(name), parameters)).fetchall()


# --- the gauges ---

_Labels: TypeAlias = tuple[str, ...]
_Values = dict[_Labels, float]


def _of_jobs(counts: dict[_Table, list[Count]]) -> Samples:
    jobs, ages, bounds, limits, in_use = Counter[_Labels](), _Values(), _Values(), _Values(), _Values()
    for table, found in counts.items():
        for count in found:
            queue = metrics.queue_label(count.queue.encode())
            jobs[table.job_type, queue, count.status] += count.jobs
            oldest = ages.get((table.job_type, queue), 0.0)
            ages[table.job_type, queue] = max(oldest, count.age or 0.0)
            bounds[table.job_type,] = count.bound
        if table.limit is not None:
            limits[table.job_type,] = table.limit
            in_use[table.job_type,] = sum(count.jobs for count in found if count.status == "running")
    return {
        "cluster_jobs": jobs,
        "cluster_jobs_count_limit": bounds,
        "cluster_oldest_ready_job_age_seconds": ages,
        "cluster_concurrency_limit": limits,
        "cluster_concurrency_in_use": in_use,
    }


def _of_nodes(nodes: Sequence[Serving], counts: dict[_Table, list[Count]]) -> Samples:
    states = _Values({(state,): 0 for state in STATES})
    for kind in nodes:
        states[kind.shown,] += kind.nodes
    unroutable = _Values()
    for table, found in counts.items():
        alone = (count.jobs for count in found if not _is_served(nodes, table.job_type, count))
        unroutable[table.job_type,] = sum(alone)
    return {"cluster_nodes": states, "cluster_unroutable_jobs": unroutable}


def _of_pauses(tables: Iterable[_Table], queues: Sequence[str]) -> Samples:
    """A queue that is not paused is not shown: nobody knows all their names."""
    return {
        "cluster_job_type_paused": {(table.job_type,): table.is_paused for table in tables},
        "cluster_queue_paused": {(metrics.queue_label(queue.encode()),): 1 for queue in queues},
    }


def _of_sizes(sizes: Mapping[_Table, Size]) -> Samples:
    return {
        "cluster_table_live_rows": {(table.job_type,): size.live for table, size in sizes.items()},
        "cluster_table_dead_rows": {(table.job_type,): size.dead for table, size in sizes.items()},
        "cluster_table_bytes": {(table.job_type,): size.bytes or 0 for table, size in sizes.items()},
    }


def _is_served(nodes: Sequence[Serving], job_type: str, count: Count) -> bool:
    return count.status == "running" or any(kind.serves(job_type, count.queue) for kind in nodes)
