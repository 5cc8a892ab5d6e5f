"""Looks at one job table: the statement of a look, and what its answer says. Takes nothing, knows nothing of the looks before."""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import AsyncConnection

from cluster.coordinator import pipeline
from cluster.coordinator.arrays import BigIntegers, Instant
from cluster.coordinator.bounds import Bound, Bounds
from cluster.coordinator.job_types import JobType
from cluster.coordinator.pipeline import Answer, Command
from cluster.statements import DEFAULT_QUEUE, Queue

MOST_FOREIGN = 100
"""Queues of other nodes that a look tells apart; the number is in look_for_jobs.sql too."""


class Head(NamedTuple):
    """The best waiting row of a queue. priority: the lowest, run_at, id None: not known, the row is parked."""

    queue: Queue
    priority: int
    run_at: Instant | None
    id: int | None


class Seen(NamedTuple):
    """By a look.

    heads: best of each queue of this node that has rows; of a look from bounds, of each place that it began at.
    foreign: what stands for the row at the head of queues that are not this node's; it changes with that row.
    due_at: run_at of the next row that is due, due_in: seconds until then; None: there is none.
    limit: the type's, None: it has none, or one for each key. running: jobs, None: not counted.
    settled: every transaction that began before is taken to have ended. took: seconds.
    """

    heads: list[Head]
    foreign: dict[str, str]
    due_at: Instant | None
    due_in: float | None
    limit: int | None
    running: int | None
    settled: Instant
    took: float


class Look(NamedTuple):
    """whole: from the start, not from bounds. epoch: of what was known when it was sent, see Backlog."""

    command: Command
    whole: bool
    epoch: int


class Aside(NamedTuple):
    """Rows that a look must not see: they refuse to be claimed, or promoted."""

    claims: list[int]
    promotions: list[int]


def command(job_type: JobType, queues: list[str] | None, bounds: Bounds | None, aside: Aside) -> Command:
    """queues: this node's, None: all. bounds: from which to look, None: from the start."""
    parameters: dict[str, Any] = {
        "table": job_type.oid, "set_aside": BigIntegers(aside.claims), "due_aside": BigIntegers(aside.promotions),
    }  # fmt: skip
    if bounds is None:
        whole = {"key": job_type.job_class.concurrency_key, "queues": queues}
        return Command(job_type.statement("look_for_jobs"), parameters | whole, recurs=True)
    return Command(job_type.statement("look_from_bounds"), parameters | bounds.parameters())


def read(connection: AsyncConnection[Any], answer: Answer) -> Seen:
    """psycopg.Error: it was refused."""
    if answer.error is not None:
        raise answer.error
    *rows, last = pipeline.rows(pipeline.adapter_of(connection), answer.results[-1])
    _, _, due_at, _, _, due_in, limit, running, settled, took = last
    heads, foreign = [], {}
    for queue, priority, run_at, job_id, version, *_ in rows:
        if version is None:
            heads.append(Head(queue, priority, run_at, job_id))
        else:
            foreign[queue] = version
    return Seen(heads, foreign, due_at, due_in, limit, running, settled, took)


def bound_of(head: Head) -> Bound:
    """The place of a head's row in its queue and priority."""
    return Bound(head.run_at, head.id or 0)


def streams(queues: list[str] | None) -> list[Queue]:
    """What a node goes through in claim order, each by itself."""
    return [DEFAULT_QUEUE, None] if queues is None else list(queues)
