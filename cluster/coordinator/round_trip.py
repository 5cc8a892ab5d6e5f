"""One round trip of the claimer: promotions, a claim, and the next looks behind it, in one pipeline; looks wait for the answer to a
claim of what no look has seen. What was claimed begins before the looks are answered. Each is a transaction of its own, whose error
is its table's; who refuses is found afterwards, see `refusal`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import AsyncConnection, abc, pq
from psycopg.adapt import Transformer
from psycopg.types.numeric import Int8
from psycopg.types.string import ByteaBinaryLoader

from cluster import statements
from cluster.coordinator import look, pipeline
from cluster.coordinator.arrays import BigIntegers
from cluster.coordinator.backlog import Backlog
from cluster.coordinator.causes import Cause, cause_of
from cluster.coordinator.claims import Outcome
from cluster.coordinator.lease import Lease
from cluster.coordinator.look import Head, Look
from cluster.coordinator.pipeline import Answer, Answers, Command
from cluster.coordinator.placement import Demand
from cluster.coordinator.unwritten import success_parameters
from cluster.frames import ID, RawRow, integer


class Plan(NamedTuple):
    """One claim. priority: the worst it may take; demand: what the node has room for.

    keys: to look after, reach: open rows to examine; of a type whose limit holds per key.
    successes: to be written in the same transaction; of a type whose limit is full, for as many claims in their place.
    from_head: to begin at the head's row, not at the best. made_at: CLOCK_MONOTONIC seconds.
    only: ids to choose from; None: all.
    """

    backlog: Backlog
    head: Head
    priority: int
    demand: Demand
    keys: list[str]
    reach: int
    successes: list[Outcome]
    from_head: bool
    made_at: float
    only: list[int] | None = None

    @property
    def limited(self) -> bool:
        return self.backlog.limit is not None or self.backlog.job_type.key is not None

    @property
    def is_unseen(self) -> bool:
        """No look has seen what it is for: the doorbell has rung, or a row is due."""
        return self.head.id is None and not self.keys

    @property
    def swaps(self) -> bool:
        """Places under a limit pass on."""
        return self.limited and bool(self.successes)


class Taken(NamedTuple):
    """What came of a claim. oids: of the rows' columns; had_lock: of a limited type; written: all successes were."""

    rows: list[RawRow]
    oids: tuple[int, ...]
    had_lock: bool
    written: bool


Take: TypeAlias = Callable[[Plan, Taken], None]
"""Gets what came of a claim."""
Following: TypeAlias = Callable[[Plan], Plan | None]
"""Asked once a claim is answered and before that is taken: another one, for the server to work on meanwhile; None: none."""


class Refusal(NamedTuple):
    """What was refused: the claim of a plan, or the promotion or the look of a backlog."""

    what: Plan | Backlog
    action: str
    cause: Cause
    error: psycopg.Error


class Trip(NamedTuple):
    """What came of a round trip. news: rows of foreign queues have come."""

    refusals: list[Refusal]
    news: bool = False


class RoundTrip:
    """Made once for a claimer; remembers how its connection gives raw values."""

    def __init__(self) -> None:
        self._raw: tuple[AsyncConnection[Any], abc.Transformer] | None = None

    async def run(
        self,
        connection: AsyncConnection[Any],
        lease: Lease,
        plan: Plan | None,
        take: Take,
        following: Following,
        *,
        due: Sequence[Backlog],
        looks: Sequence[Backlog] | None,
    ) -> Trip:
        """take: not called for a claim that was refused; called before the looks are answered. following: asked only without looks.
        due: where to promote. looks: None: none, and none is needed.

        psycopg.Error: the connection is lost, or a plan on it is stale.
        """
        transactions = [
            *([promotion(backlog)] for backlog in due),
            *([] if plan is None else [_claim(connection, lease, plan)]),
        ]
        trip = Trip([])
        promoted: dict[Backlog, int] = {}
        # Unseen, it is most often one row: more to send would hold its claim up.
        looks_after = plan is not None and plan.is_unseen
        async with pipeline.sent(connection, *transactions) as answers:
            sent = [] if looks_after else _look(answers, looks)  # the server is at work meanwhile
            for backlog in due:
                answer = await answers.next()
                if self._worked(trip, backlog, "promote", answer):
                    promoted[backlog] = answer.results[-1].command_tuples or 0
            while plan is not None:
                answer = await answers.next()
                if not self._worked(trip, plan, "claim", answer):
                    break
                taken = self._taken(connection, plan, answer)
                next_plan = None if looks is not None else following(plan)
                if next_plan is not None:
                    answers.send(_claim(connection, lease, next_plan))
                take(plan, taken)
                plan = next_plan
            if looks_after:
                sent = _look(answers, looks)
            found = [(backlog, sent_look, await answers.next()) for backlog, sent_look in sent]
        for backlog, sent_look, answer in found:
            if self._worked(trip, backlog, "look", answer):
                seen = look.read(connection, answer)
                trip = trip._replace(news=backlog.seen(sent_look, seen) or trip.news)
                if backlog in promoted:
                    backlog.promoted(promoted[backlog], seen.due_in)
        await leave_transaction(connection)
        return trip

    async def claim(self, connection: AsyncConnection[Any], lease: Lease, plan: Plan) -> Taken:
        """Nothing but a claim. psycopg.Error: it was refused."""
        async with pipeline.sent(connection, _claim(connection, lease, plan)) as answers:
            answer = await answers.next()
        if answer.error is not None:
            await leave_transaction(connection)
            raise answer.error
        return self._taken(connection, plan, answer)

    def _worked(self, trip: Trip, what: Plan | Backlog, action: str, answer: Answer) -> bool:
        if answer.error is None:
            return True
        cause = cause_of(answer.error)
        if cause in {Cause.LOST, Cause.STALE_PLAN}:
            raise answer.error
        if answer.error.sqlstate != "25P02":  # behind another one's, whose transaction is still open: nobody's fault
            trip.refusals.append(Refusal(what, action, cause, answer.error))
        return False

    def _taken(self, connection: AsyncConnection[Any], plan: Plan, answer: Answer) -> Taken:
        in_lock = plan.limited and not plan.swaps
        results = answer.results[1:-1] if in_lock and _is_pooled(connection) else answer.results
        result = results[-1]
        rows = pipeline.rows(self._raw_adapter(connection), result)
        oids = tuple(result.ftype(column) for column in range(result.nfields))
        if plan.swaps:  # the last column counts what was finished; a row without an id stands for none
            written = integer(rows[0][-1]) == len(plan.successes)
            return Taken([row[:-1] for row in rows if row[ID] is not None], oids[:-1], had_lock=False, written=written)
        had_lock = in_lock and results[0].get_value(0, 0) == b"true"
        written = bool(plan.successes) and results[0].ntuples == len(plan.successes)
        return Taken(rows, oids, had_lock, written)

    def _raw_adapter(self, connection: AsyncConnection[Any]) -> abc.Transformer:
        """Loads values as the bytes that the database sent: workers decode them."""
        if self._raw is None or self._raw[0] is not connection:
            self._raw = connection, _raw_adapter(connection)
        return self._raw[1]


def promotion(backlog: Backlog, only: list[int] | None = None) -> Command:
    """Makes rows that are due claimable; the looks after it see those. only: ids to choose from; None: all."""
    parameters = {
        "limit": backlog.promotions_pace.rows, "due_from": backlog.bounds.due_from,
        "set_aside": BigIntegers(backlog.due_aside.ids()), "only": None if only is None else BigIntegers(only),
    }  # fmt: skip
    backlog.bounds.promoted()
    return Command(backlog.job_type.statement("promote_jobs"), parameters)


def _look(answers: Answers, backlogs: Sequence[Backlog] | None) -> list[tuple[Backlog, Look]]:
    """Sends looks; which ones, and of what."""
    sent = [(backlog, backlog.next_look()) for backlog in backlogs or ()]
    answers.send(*([sent_look.command] for _, sent_look in sent))
    return sent


async def leave_transaction(connection: AsyncConnection[Any]) -> None:
    """Behind a pooler a claim opens its transaction itself, which stays open when it was refused."""
    if connection.info.transaction_status != pq.TransactionStatus.IDLE:
        await pipeline.ask(connection, [Command(b"ROLLBACK")])


def _is_pooled(connection: AsyncConnection[Any]) -> bool:
    return connection.prepare_threshold is None


def _claim(connection: AsyncConnection[Any], lease: Lease, plan: Plan) -> list[Command]:
    backlog, queue = plan.backlog, plan.head.queue
    job_type, parameters = backlog.job_type, claim_parameters(lease, plan)
    successes = success_parameters(plan.successes) if plan.successes else {}
    if plan.swaps:
        swap = parameters | successes | {"limit": backlog.limit}
        return [Command(job_type.statement("swap_limited_jobs", queue), swap)]
    if not plan.limited:
        finish = [Command(job_type.statement("finish_succeeded_jobs"), successes)] if successes else []
        return [*finish, Command(job_type.statement("claim_jobs", queue), parameters, recurs=True)]
    name = "claim_limited_jobs"
    if job_type.key is not None:
        name = "claim_keyed_jobs"
        parameters |= {"key": job_type.key.column, "keys": plan.keys, "reach": plan.reach}
    commands = [
        Command(statements.text("take_turn").encode(), {"table": job_type.oid}, recurs=True),
        Command(job_type.statement(name, queue), parameters, recurs=True),
    ]
    if _is_pooled(connection):  # whose sessions may have any isolation; our own are set to READ COMMITTED
        return [Command(b"BEGIN ISOLATION LEVEL READ COMMITTED"), *commands, Command(b"COMMIT")]
    return commands


def claim_parameters(lease: Lease, plan: Plan) -> dict[str, Any]:
    """Of every claim, and of list_claimable_jobs."""
    head, backlog = plan.head, plan.backlog
    first = (head.priority, head.run_at, head.id or 0) if plan.from_head else (0, None, 0)
    return {
        "node": lease.node, "table": backlog.table, "queue": head.queue, "priority": plan.priority,
        "from_priority": first[0], "from_run_at": first[1], "from_id": Int8(first[2]),
        "slots": plan.demand.slots, "demand": plan.demand.jobs, "whole": plan.demand.whole,
        "max_attempts": backlog.job_type.max_attempts, "set_aside": BigIntegers(backlog.aside.ids()),
        "only": None if plan.only is None else BigIntegers(plan.only),
    }  # fmt: skip


def _raw_adapter(connection: AsyncConnection[Any]) -> abc.Transformer:
    cursor = connection.cursor()
    for info in cursor.adapters.types:
        cursor.adapters.register_loader(info.oid, ByteaBinaryLoader)
        if info.array_oid:
            cursor.adapters.register_loader(info.array_oid, ByteaBinaryLoader)
    cursor.adapters.register_loader(0, ByteaBinaryLoader)
    return Transformer(cursor)
