"""Performing jobs in the process of a test: all that are due, or one."""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from psycopg import Connection

from cluster.errors import ClusterError
from cluster.inline import aperform_now, perform_now
from cluster.job import Job, definition
from cluster.testing.attempt import complete
from cluster.testing.inline_node import InlineNode, Performed
from cluster.testing.travel import Database, connected, travel


def drain(
    database: Database,
    *,
    within: timedelta = timedelta(0),
    jobs: Sequence[type[Job]] | None = None,
    limit: int = 1000,
) -> list[Performed]:
    """Performs in this process all that is due, and what comes of it; returns what ran, in order. A job that fails is data.

    within: also what becomes due until then, retries and schedules included: whenever nothing is due, time is moved to what is next
    (see `travel`). jobs: of these classes only; None: of all that are defined. limit: of attempts; more is a ClusterError, as are
    due jobs without a class, and nothing to do while a transaction that enqueued is still open.
    """
    performed: list[Performed] = []
    with connected(database) as connection, InlineNode(connection, jobs) as node:
        left = within
        while True:
            for one in node.work_off():
                performed.append(one)
                _check_limit(performed, limit)
            ahead = node.due_in()
            if ahead is None or ahead > left:
                break
            if ahead > timedelta(0):
                travel(connection, ahead)
                node.travelled_by(ahead)
                left -= ahead
        if jobs is None:
            node.refuse_strangers()
        if not performed:
            _refuse_open_transactions(connection)
    return performed


@typing.overload
def perform_job(job: Job) -> Any: ...
@typing.overload
def perform_job(job: Job, database: Database) -> Performed: ...
def perform_job(job: Job, database: Database | None = None) -> Any:
    """Performs one job in this process, hooks included; an async one on a loop of its own, also where one is running.

    Without a database: no row, and nothing is caught; returns what `perform` returns. With one: its row, which is inserted unless
    the job has an id, is claimed and finished as by a node, and a job that fails is data.
    """
    if database is None:
        return complete(partial(aperform_now, job)) if definition(type(job)).is_async else perform_now(job)
    with connected(database) as connection, InlineNode(connection, [type(job)]) as node:
        return node.perform(job if job.id is not None else job.perform_later(connection))


def _check_limit(performed: list[Performed], limit: int) -> None:
    if len(performed) > limit:
        ((name, times),) = Counter(type(one.job).__name__ for one in performed).most_common(1)
        raise ClusterError(
            f"more than {limit} attempts, {times} of {name}: it may enqueue itself for ever; or give a higher limit"
        )


def _refuse_open_transactions(connection: Connection[Any]) -> None:
    found = connection.execute(_OPEN_TRANSACTIONS).fetchone()
    if found is not None:
        raise ClusterError(
            f"nothing is due, but a transaction is open that has written to {found[0]}: commit first, or pass its connection"
        )


_OPEN_TRANSACTIONS = """
SELECT t.job_table::text FROM pg_locks AS l JOIN cluster.job_types AS t ON t.job_table = l.relation
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.mode = 'RowExclusiveLock' AND l.pid <> pg_backend_pid() AND a.state LIKE 'idle in transaction%'
LIMIT 1"""
