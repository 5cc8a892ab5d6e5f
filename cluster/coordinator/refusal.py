"""Rows that a user's trigger or constraint does not let the cluster claim: found one by one, failed or left alone.

One such row must not keep the others of its table from being claimed.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors

from cluster import events
from cluster.coordinator.job_types import JobType

SET_ASIDE_FOR = 60.0
"""Seconds until such a row is tried again."""


def set_aside(job_type: JobType) -> list[int]:
    """The rows that a claim must leave out for now."""
    if job_type.set_aside:
        now = time.monotonic()
        job_type.set_aside = {job_id: until for job_id, until in job_type.set_aside.items() if until > now}
    return list(job_type.set_aside)


async def find_refused(
    connection: AsyncConnection[Any], job_type: JobType, parameters: dict[str, Any], error: psycopg.Error
) -> None:
    """A claim with these parameters failed for good: sets aside each row that refuses the claim's update."""
    found = False
    cursor = await connection.execute(job_type.statement("list_claimable_jobs"), parameters)
    for (job_id,) in await cursor.fetchall():
        try:
            async with connection.transaction(force_rollback=True):
                await connection.execute(job_type.statement("probe_job"), {**parameters, "id": job_id})
        except errors.LockNotAvailable:
            continue  # somebody has it locked: not the one that is looked for, or not now
        except errors.OperationalError:
            raise
        except psycopg.Error as refusal:
            found = True
            job_type.set_aside[job_id] = time.monotonic() + SET_ASIDE_FOR
            events.job_set_aside(job_type.name, job_id, refusal)
            await _fail(connection, job_type, job_id, refusal)
    if not found:
        events.claim_refused(job_type.name, error)


async def _fail(connection: AsyncConnection[Any], job_type: JobType, job_id: int, refusal: psycopg.Error) -> None:
    text = f"the database refuses to let this job run: {refusal}"
    try:
        await connection.execute(job_type.statement("refuse_job"), {"id": job_id, "error": text})
    except errors.OperationalError:
        raise
    except psycopg.Error:
        return  # refused as well: the row stays as it is
