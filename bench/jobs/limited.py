"""A job that does nothing, with the default limit of 16 at a time in the whole cluster."""

from cluster import Job


class LimitedJob(Job):
    number: int

    table = "bench_limited_jobs"

    async def perform(self) -> None:
        pass
