"""How long this node's jobs take, told with each heartbeat: cluster.autoscaling reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from psycopg.types.json import Jsonb

from cluster import metrics
from cluster.coordinator.job_types import JobType

REMEMBERED = 100
"""Attempts whose duration makes up the mean; older ones count for less and less."""

_dumps = partial(json.dumps, ensure_ascii=False)  # names as in the column `jobs`; not every database takes escapes


class Workload:
    """concurrency: slots of a worker process, which a plain job has to itself."""

    def __init__(self, types: Sequence[JobType], concurrency: int) -> None:
        self._types = [TypeWork(job_type.name, concurrency if job_type.exclusive else 1) for job_type in types]

    def measure(self) -> Jsonb:
        """For cluster.nodes, with what has ended since the last time."""
        ended = metrics.run_seconds.totals()
        for job_type in self._types:
            job_type.ended(*ended.get(job_type.name, (0, 0.0)))
        return Jsonb([job_type.told() for job_type in self._types], dumps=_dumps)


class TypeWork:
    """Of one job type. slots: that a job of it takes."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self._slots = slots
        self._ended = (0, 0.0)
        self._attempts = 0
        self._seconds = 0.0

    def ended(self, attempts: int, seconds: float) -> None:
        """So many, with so many seconds in all, since the process started."""
        new, took = attempts - self._ended[0], seconds - self._ended[1]
        self._ended = attempts, seconds
        if new:
            self._seconds += (took / new - self._seconds) * new / (self._attempts + new)
            self._attempts = min(REMEMBERED, self._attempts + new)

    def told(self) -> dict[str, Any]:
        return {
            "job_type": self.name, "slots": self._slots, "seconds": round(self._seconds, 6), "attempts": self._attempts,
        }  # fmt: skip
