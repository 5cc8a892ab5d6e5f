"""When a worker process is to be replaced, between jobs: after so many jobs, an age, with so much memory, or for new code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster.coordinator.forkserver import Forkserver
from cluster.coordinator.process import WorkerProcess
from cluster.settings import Settings

LONG = 30.0
"""Seconds for which the next one waits for the jobs of one that is leaving."""


class Recycling(NamedTuple):
    """jobs: that one may end; age: in seconds; memory: resident bytes. None: that is no reason."""

    jobs: int | None
    age: float | None
    memory: int | None

    @classmethod
    def of(cls, settings: Settings) -> Recycling:
        age = settings.recycle_age
        return cls(settings.recycle_jobs, None if age is None else age.total_seconds(), settings.recycle_memory)

    def due(
        self, workers: Sequence[WorkerProcess], current: Forkserver, now: float
    ) -> tuple[WorkerProcess, str] | None:
        """A worker that is to take no more jobs, and why. None while another begins to leave. current: that has the newest code."""
        if any(worker.is_leaving and now - worker.leaving_since < LONG for worker in workers):
            return None
        idle_first = sorted(workers, key=lambda worker: len(worker.claims))
        staying = (worker for worker in idle_first if worker.is_up and not worker.is_leaving)
        reasons = ((worker, self._reason(worker, current, now)) for worker in staying)
        return next(((worker, reason) for worker, reason in reasons if reason), None)

    def _reason(self, worker: WorkerProcess, current: Forkserver, now: float) -> str:
        """Empty: there is none."""
        if worker.forkserver is not current:
            return "there is newer code"
        if self.jobs is not None and worker.performed >= self.jobs:
            return f"it has performed {worker.performed} jobs"
        if self.age is not None and now - worker.started_at >= self.age:
            return f"it is {now - worker.started_at:.0f} s old"
        if self.memory is not None and worker.memory > self.memory:
            return f"it has {worker.memory / 2**20:,.0f} MiB of memory"
        return ""
