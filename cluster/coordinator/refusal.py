"""Who refuses: finds the rows that a user's trigger, constraint or index does not let the cluster change, so that they alone wait.

A statement that was refused as a whole is made anew for halves of its rows, down to the row. If the rows that are tried alone all
refuse for what is not their fault, it is the table's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection

from cluster import events
from cluster.coordinator import pipeline
from cluster.coordinator.arrays import BigIntegers
from cluster.coordinator.backlog import Backlog
from cluster.coordinator.causes import WHY_HELD, Cause, brief, cause_of
from cluster.coordinator.lease import Lease
from cluster.coordinator.pipeline import Command
from cluster.coordinator.round_trip import (
    Plan,
    Refusal,
    RoundTrip,
    Take,
    claim_parameters,
    leave_transaction,
    promotion,
)
from cluster.coordinator.trouble import FIRST_PAUSE, LONGEST_PAUSE, RowsAside
from cluster.error_text import shorten, without_row
from cluster.fingerprint import fingerprint

MOST_TRIES = 60
"""Statements in search of rows that refuse, at one time: others wait meanwhile."""
MOST_FAULTS = 3
"""So many rows that were tried alone, none of which worked, and were refused for what is not a row's fault: it is the table's."""
MAY_PASS = 3
"""Failures in a row for what may pass by itself, such as a deadlock, before rows are tried one by one."""
ROWS_OWN = {Cause.ROW, Cause.TAKEN}
"""Causes that lie in a row, or between it and another one."""
NO_ROWS = {Cause.LOCKED, Cause.SLOW, Cause.DENIED, Cause.UNDEFINED}
"""Causes that no row explains: there is nothing to search for."""
SHORT = 2000
"""Characters of what is written into a row that refuses longer texts, or may."""
FIRST_PAUSE_TAKEN, LONGEST_PAUSE_TAKEN = 0.1, 10.0
"""Seconds for which a row waits in whose way another one is, which may end at any moment."""


async def settle_claim(
    connection: AsyncConnection[Any], lease: Lease, trip: RoundTrip, plan: Plan, refusal: Refusal, take: Take
) -> None:
    """A claim was refused: claims what can be claimed of its rows. The plan's successes have gone back."""
    backlog, demand = plan.backlog, plan.demand
    backlog.keep_apart()
    if plan.successes:
        return  # they may be to blame: the finisher finds out, the next claim goes alone
    if refusal.cause is Cause.SLOW and backlog.claims_pace.too_slow():
        return  # the next one takes fewer
    if refusal.cause in NO_ROWS:
        backlog.claim_failed(refusal.cause, refusal.error)
        return
    backlog.failures += 1
    if refusal.cause is Cause.PASSING and backlog.failures < MAY_PASS:
        backlog.missed(plan.head, None)
        return
    listing = Command(backlog.job_type.statement("list_claimable_jobs", plan.head.queue), claim_parameters(lease, plan))

    async def claim(only: list[int]) -> int:
        nonlocal demand
        part = plan._replace(only=only, demand=demand, keys=[])
        taken = await trip.claim(connection, lease, part)
        had = len(taken.rows)
        demand = demand._replace(slots=max(0, demand.slots - had), jobs=demand.jobs - had)
        take(part, taken)
        return had

    found = await search(connection, await _listed(connection, listing), claim)
    if found.fault is not None:
        backlog.claim_failed(cause_of(found.fault), found.fault)
        return
    backlog.claimed(plan.head)
    _set_aside(backlog.aside, found)
    for job_id, error in found.refused:
        if cause_of(error) is Cause.ROW:
            await _fail(connection, backlog, job_id, error)


async def settle_promotion(connection: AsyncConnection[Any], backlog: Backlog, refusal: Refusal) -> None:
    """A promotion was refused: promotes what can be promoted. The other rows stay as they are."""
    if refusal.cause is Cause.SLOW and backlog.promotions_pace.too_slow():
        return  # the next one is about fewer
    if refusal.cause in NO_ROWS:
        backlog.promotions_held.begin(WHY_HELD[refusal.cause], brief(refusal.error))
        return
    parameters = {"set_aside": BigIntegers(backlog.due_aside.ids()), "limit": backlog.promotions_pace.rows}
    listing = Command(backlog.job_type.statement("list_due_jobs"), parameters)

    async def promote(only: list[int]) -> int:
        (result,) = await pipeline.ask(connection, [promotion(backlog, only)])
        return result.command_tuples or 0

    found = await search(connection, await _listed(connection, listing), promote)
    if found.fault is not None:
        reason = WHY_HELD.get(cause_of(found.fault), "table_refuses_promotions")
        backlog.promotions_held.begin(reason, brief(found.fault))
    else:
        backlog.promotions_held.end()
        _set_aside(backlog.due_aside, found)


class Found(NamedTuple):
    """By a search. refused: rows that refuse, and why. untried: rows for which there was no time. fault: an error that is not any
    row's fault but the table's, which then nothing is said of; None: there is none."""

    refused: list[tuple[int, psycopg.Error]]
    untried: list[int]
    fault: psycopg.Error | None


async def search(
    connection: AsyncConnection[Any], rows: list[int], attempt: Callable[[list[int]], Awaitable[int]]
) -> Found:
    """Finds the rows that refuse. attempt: does it to these rows, and tells to how many; psycopg.Error if one refuses.

    psycopg.Error: the connection is lost.
    """
    parts, refused, worked = [rows] if rows else [], list[tuple[int, psycopg.Error]](), False
    for _ in range(MOST_TRIES):
        if not parts or (not worked and _faults(refused) >= MOST_FAULTS):
            break
        part = parts.pop()
        try:
            worked = bool(await attempt(part)) or worked
        except psycopg.Error as error:
            if is_lost(connection, error):
                raise
            await leave_transaction(connection)
            if cause_of(error) in NO_ROWS:
                return Found([], [], error)
            if len(part) == 1:
                refused.append((part[0], error))
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
    untried = [row for part in parts for row in part]
    if not worked and _faults(refused) >= MOST_FAULTS:
        return Found([], [], next(error for _, error in refused if cause_of(error) not in ROWS_OWN))
    return Found(refused, untried, None)


def is_lost(connection: AsyncConnection[Any], error: psycopg.Error) -> bool:
    """It is the session's matter, not that of who asked."""
    return cause_of(error, alive=not connection.closed) in {Cause.LOST, Cause.STALE_PLAN}


def _faults(refused: list[tuple[int, psycopg.Error]]) -> int:
    return sum(cause_of(error) not in ROWS_OWN for _, error in refused)


async def _listed(connection: AsyncConnection[Any], listing: Command) -> list[int]:
    (result,) = await pipeline.ask(connection, [listing])
    return [job_id for (job_id,) in pipeline.rows(pipeline.adapter_of(connection), result)]


def _set_aside(aside: RowsAside, found: Found) -> None:
    for job_id, error in found.refused:
        taken = cause_of(error) is Cause.TAKEN
        pauses = (FIRST_PAUSE_TAKEN, LONGEST_PAUSE_TAKEN) if taken else (FIRST_PAUSE, LONGEST_PAUSE)
        aside.add(job_id, brief(error), *pauses)


async def _fail(connection: AsyncConnection[Any], backlog: Backlog, job_id: int, refusal: psycopg.Error) -> None:
    """The row will never be let run, until somebody changes something: it says so itself, if that is let in."""
    events.job_set_aside(backlog.job_type.name, job_id, refusal)
    text = shorten(f"the database refuses to let this job run: {without_row(refusal)}", SHORT)
    command = Command(
        backlog.job_type.statement("refuse_job"),
        {"id": job_id, "error": text, "fingerprint": fingerprint("refused", text)},
    )
    try:
        await pipeline.ask(connection, [command])
    except psycopg.Error as error:
        if is_lost(connection, error):
            raise
        return  # refused as well: the row stays as it is
    backlog.given_up += 1
    backlog.aside.accepted([job_id])
