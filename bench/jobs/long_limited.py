"""A job that waits for as long as its row says; at most 40 at a time in the whole cluster."""

import asyncio

from cluster import Job


class LimitedLongJob(Job):
    pause: float

    table = "bench_limited_long_jobs"
    max_concurrency = 40

    async def perform(self) -> None:
        await asyncio.sleep(self.pause)
