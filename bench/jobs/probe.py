"""Jobs that note when they start, in memory shared with the benchmark: without a limit, and with the default one."""

import time

from bench.board import board_of_node
from cluster import Job


class ProbeJob(Job):
    place: int

    table = "bench_probe_jobs"
    max_concurrency = None

    async def perform(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        board_of_node().note(self.place, now)


class LimitedProbeJob(Job):
    place: int

    table = "bench_limited_probe_jobs"

    async def perform(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        board_of_node().note(self.place, now)
