"""The counted job with the default limit of 16 at a time in the whole cluster."""

from bench.board import board_of_node
from cluster import Job


class LimitedCountedJob(Job):
    number: int

    table = "bench_limited_counted_jobs"

    async def perform(self) -> None:
        board_of_node().count()
