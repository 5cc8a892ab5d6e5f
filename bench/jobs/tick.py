"""A job that schedules insert: it does nothing, without a limit."""

from cluster import Job


class TickJob(Job):
    table = "bench_tick_jobs"
    max_concurrency = None

    async def perform(self) -> None:
        pass
