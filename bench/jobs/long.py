"""A job that waits for as long as its row says, without a limit."""

import asyncio

from cluster import Job


class LongJob(Job):
    pause: float

    table = "bench_long_jobs"
    max_concurrency = None

    async def perform(self) -> None:
        await asyncio.sleep(self.pause)
