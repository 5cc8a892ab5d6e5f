"""A job that does nothing, without a limit: what is measured is the cluster."""

from cluster import Job


class NoopJob(Job):
    number: int

    table = "bench_noop_jobs"
    max_concurrency = None

    async def perform(self) -> None:
        pass
