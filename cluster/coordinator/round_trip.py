"""One round trip of the claimer: a claim, and the next look behind it, in one pipeline. What was claimed begins during the look.

When something is in the way, the next round trip goes statement by statement, to find out what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import psycopg
from psycopg import AsyncConnection, abc, errors
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult
from psycopg.types.numeric import Int8
from psycopg.types.string import ByteaBinaryLoader

from cluster import locks, statements
from cluster.coordinator import pipeline
from cluster.coordinator.finish import success_parameters
from cluster.coordinator.job_types import forget
from cluster.coordinator.lease import Lease
from cluster.coordinator.look import Head, Look, Looker, View
from cluster.coordinator.pipeline import Command
from cluster.coordinator.pool import Finished
from cluster.coordinator.process import RawRow
from cluster.coordinator.refusal import find_refused, set_aside
from cluster.frames import ID, integer


class Plan(NamedTuple):
    """One claim. priority: the worst it may take; slots: how many can begin at once; demand: how many to take.

    keys: to look after, reach: open rows to examine; of a type whose limit holds per key.
    successes: to be written in the same transaction; of a type whose limit is full, for as many claims in their place.
    from_head: to begin at the head's row, not at the best. made_at: CLOCK_MONOTONIC seconds.
    """

    head: Head
    priority: int
    slots: int
    demand: int
    keys: list[str]
    reach: int
    successes: list[Finished]
    from_head: bool
    made_at: float

    @property
    def limited(self) -> bool:
        return self.head.limit is not None or self.head.job_type.key is not None

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


class Trip(NamedTuple):
    """view None: nobody looked, or something failed. promoted: rows; failed: the same again, one by one."""

    view: View | None
    promoted: int = 0
    failed: bool = False


class RoundTrip:
    """Made once; remembers whether the last one failed."""

    def __init__(self, looker: Looker) -> None:
        self.careful = False
        """The last one failed: claim and look one by one."""
        self._looker = looker
        self._raw: tuple[AsyncConnection[Any], abc.Transformer] | None = None

    async def run(
        self,
        connection: AsyncConnection[Any],
        lease: Lease,
        plan: Plan | None,
        take: Take,
        following: Following,
        *,
        due: set[int],
        looks: list[Look] | None,
    ) -> Trip:
        """take: not called for a claim that failed; called while the look is still under way. following: asked only without a look.
        due: tables to promote in. looks: None: no look; []: nothing needs to be looked at."""
        if self.careful:
            return await self._one_by_one(connection, lease, plan, take)
        promotions = self._looker.promotions(due)
        claim = [] if plan is None else _claim(lease, plan)
        found: list[PGresult] = []
        promoted: list[PGresult] = []
        transactions = list(filter(None, [promotions, claim, [look.command for look in looks or ()]]))
        try:
            async with pipeline.sent(connection, *transactions) as answers:
                failures = []
                if promotions:
                    promoted = await answers.next()
                    failures.append(pipeline.error_of(connection, promoted))
                while plan is not None:
                    claimed = await answers.next()
                    failures.append(pipeline.error_of(connection, claimed))
                    if failures[-1] is not None:
                        break
                    taken = self._taken(connection, plan, claimed)
                    next_plan = None if looks is not None else following(plan)
                    if next_plan is not None:
                        await answers.send(_claim(lease, next_plan))
                    take(plan, taken)
                    plan = next_plan
                if looks:
                    found = await answers.next()
                    failures.append(pipeline.error_of(connection, found))
            failed = any(failures)
        except psycopg.Error:
            if connection.closed:
                raise
            failed = True  # a statement can't be prepared
        if failed:
            self.careful = True  # one by one, the statement that is to blame says why
            await connection.rollback()
            return Trip(None, failed=True)
        view = None if looks is None else self._looker.read(connection, looks, found)
        return Trip(view, sum(answer.command_tuples or 0 for answer in promoted))

    async def _one_by_one(self, connection: AsyncConnection[Any], lease: Lease, plan: Plan | None, take: Take) -> Trip:
        """What is in the way is found, and left out of the next round trips."""
        if plan is not None and (taken := await self._claim_alone(connection, lease, plan)) is not None:
            take(plan, taken)
        view = await self._looker.look(connection)
        due = {table for table, due_in in view.due_in.items() if due_in <= 0}
        for promotion in self._looker.promotions(due):
            await pipeline.ask(connection, [promotion])
        self.careful = False
        return Trip(view)

    async def _claim_alone(self, connection: AsyncConnection[Any], lease: Lease, plan: Plan) -> Taken | None:
        job_type = plan.head.job_type
        try:
            answers = await pipeline.ask(connection, _claim(lease, plan))
        except errors.LockNotAvailable:
            await connection.rollback()  # the look that follows finds the locked table
            return None
        except (errors.UndefinedTable, errors.UndefinedColumn):
            await connection.rollback()
            forget(job_type)
            self._looker.sweep_soon()
            return None
        except (errors.OperationalError, errors.FeatureNotSupported, errors.ReadOnlySqlTransaction):
            raise
        except psycopg.Error as error:
            await connection.rollback()
            await find_refused(connection, job_type, _parameters(lease, plan), error)
            return None
        return self._taken(connection, plan, answers)

    def _taken(self, connection: AsyncConnection[Any], plan: Plan, answers: list[PGresult]) -> Taken:
        in_lock = plan.limited and not plan.swaps
        result = answers[_CLAIM if in_lock else -1]
        rows = pipeline.rows(self._raw_adapter(connection), result)
        oids = tuple(result.ftype(column) for column in range(result.nfields))
        if plan.swaps:  # the last column counts what was finished; a row without an id stands for none
            written = integer(rows[0][-1]) == len(plan.successes)
            return Taken([row[:-1] for row in rows if row[ID] is not None], oids[:-1], had_lock=False, written=written)
        had_lock = in_lock and answers[_LOCK].get_value(0, 0) == b"true"
        written = bool(plan.successes) and answers[0].ntuples == len(plan.successes)
        return Taken(rows, oids, had_lock, written)

    def _raw_adapter(self, connection: AsyncConnection[Any]) -> abc.Transformer:
        """Loads values as the bytes that the database sent: workers decode them."""
        if self._raw is None or self._raw[0] is not connection:
            self._raw = connection, _raw_adapter(connection)
        return self._raw[1]


_LOCK, _CLAIM = 1, 2
"""Of a limited claim: places in its transaction."""


def _claim(lease: Lease, plan: Plan) -> list[Command]:
    job_type, parameters = plan.head.job_type, _parameters(lease, plan)
    successes = success_parameters(plan.successes) if plan.successes else {}
    if plan.swaps:
        return [Command(job_type.statement("swap_limited_jobs"), parameters | successes | {"limit": plan.head.limit})]
    if not plan.limited:
        finish = [Command(job_type.statement("finish_succeeded_jobs"), successes)] if successes else []
        return [*finish, Command(job_type.statement("claim_jobs"), parameters)]
    name = "claim_limited_jobs"
    if job_type.key is not None:
        name = "claim_keyed_jobs"
        parameters |= {"key": job_type.key.column, "keys": plan.keys, "reach": plan.reach}
    lock = {"class": locks.CLAIM, "table": job_type.oid}
    return [
        Command(b"BEGIN ISOLATION LEVEL READ COMMITTED"),
        Command(statements.text("try_claim_lock").encode(), lock),
        Command(job_type.statement(name), parameters),
        Command(b"COMMIT"),
    ]


def _parameters(lease: Lease, plan: Plan) -> dict[str, Any]:
    head, job_type = plan.head, plan.head.job_type
    first = (head.priority, head.run_at, head.id or 0) if plan.from_head else (0, None, 0)
    return {
        "node": lease.node, "table": job_type.oid, "queue": head.queue, "priority": plan.priority,
        "from_priority": first[0], "from_run_at": first[1], "from_id": Int8(first[2]),
        "slots": plan.slots, "demand": plan.demand, "max_attempts": job_type.max_attempts,
        "set_aside": set_aside(job_type),
    }  # fmt: skip


def _raw_adapter(connection: AsyncConnection[Any]) -> abc.Transformer:
    cursor = connection.cursor()
    for info in cursor.adapters.types:
        cursor.adapters.register_loader(info.oid, ByteaBinaryLoader)
        if info.array_oid:
            cursor.adapters.register_loader(info.array_oid, ByteaBinaryLoader)
    cursor.adapters.register_loader(0, ByteaBinaryLoader)
    return Transformer(cursor)
