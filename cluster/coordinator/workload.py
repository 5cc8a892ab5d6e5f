"""What this node's jobs are like: how long they take, and how many run on average. Told with each heartbeat: cluster.autoscaling
reads it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from psycopg.types.json import Jsonb

from cluster import metrics
from cluster.coordinator.claims import Claim
from cluster.coordinator.job_types import JobType
from cluster.frames import QUEUE

REMEMBERED = 100
"""Attempts whose duration makes up the mean; older ones count for less and less."""
SMOOTHING = 60.0
"""Seconds: what ran that long ago counts for a third in the average."""
LEAST_BUSY = 0.05
"""Jobs on average, below which a queue is left out."""
MOST_QUEUES = 100
"""Of one job type, the busiest."""

_dumps = partial(json.dumps, ensure_ascii=False)  # escapes are refused by databases that know no Unicode


class Workload:
    """begun: claims whose jobs run at the moment. concurrency: slots of a worker process, which a plain job has to itself."""

    def __init__(self, types: Sequence[JobType], concurrency: int, begun: Callable[[], Iterable[Claim]]) -> None:
        self._begun = begun
        self._types = [TypeWork(job_type.name, concurrency if job_type.exclusive else 1) for job_type in types]
        self._measured_at: float | None = None

    def measure(self, now: float) -> Jsonb:
        """For cluster.nodes, with what has happened since the last time. now: CLOCK_MONOTONIC seconds."""
        kept = 0.0 if self._measured_at is None else math.exp((self._measured_at - now) / SMOOTHING)
        self._measured_at = now
        running: dict[str, Counter[str]] = {}
        for claim in self._begun():
            queue = (claim.head[QUEUE] or b"").decode(errors="replace")
            running.setdefault(claim.job_type.name, Counter())[queue] += 1
        ended = metrics.run_seconds.totals()
        for job_type in self._types:
            job_type.ran(running.get(job_type.name, Counter()), kept)
            job_type.ended(*ended.get(job_type.name, (0, 0.0)))
        return Jsonb([job_type.told() for job_type in self._types], dumps=_dumps)


class TypeWork:
    """Of one job type. slots: that a job of it takes."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self._slots = slots
        self._ended = (0, 0.0)
        """Attempts of this process so far, and their seconds."""
        self._attempts = 0
        self._seconds = 0.0
        self._busy: dict[str, float] = {}

    def ran(self, jobs: Counter[str], kept: float) -> None:
        """jobs: that run now, by queue. kept: of the averages, the part that is not of them."""
        busy = {
            queue: kept * self._busy.get(queue, 0.0) + (1 - kept) * jobs[queue] for queue in self._busy.keys() | jobs
        }
        self._busy = {queue: average for queue, average in busy.items() if average >= LEAST_BUSY}

    def ended(self, attempts: int, seconds: float) -> None:
        """Since the process started."""
        new, took = attempts - self._ended[0], seconds - self._ended[1]
        self._ended = attempts, seconds
        if new:
            self._seconds += (took / new - self._seconds) * new / (self._attempts + new)
            self._attempts = min(REMEMBERED, self._attempts + new)

    def told(self) -> dict[str, Any]:
        busiest = sorted(self._busy.items(), key=lambda entry: -entry[1])[:MOST_QUEUES]
        return {
            "job_type": self.name, "slots": self._slots, "seconds": round(self._seconds, 6), "attempts": self._attempts,
            "busy": {queue: round(average, 3) for queue, average in busiest},
        }  # fmt: skip
