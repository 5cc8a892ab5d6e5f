"""A job without a limit that is counted, in memory shared with the benchmark, which inserts more as they are performed."""

from bench.board import board_of_node
from cluster import Job


class CountedJob(Job):
    number: int

    table = "bench_counted_jobs"
    max_concurrency = None

    async def perform(self) -> None:
        board_of_node().count()
