"""What jobs leave in memory that processes share, at the cost of a store and no system call: start times, or their number.

The benchmark makes the file. A start time, in nanoseconds of CLOCK_MONOTONIC, goes into the job's own place; jobs that are only
counted share that of their worker process. So nobody locks.
"""

from __future__ import annotations

import mmap
import os
import time
from functools import cache
from pathlib import Path
from typing import Self

VARIABLE = "BENCH_BOARD"
"""Names the file to the nodes, whose workers inherit it."""
COUNTERS = 1024
"""Places that counting uses. The few worker processes of a node are started one after the other: none shares another's."""


class Board:
    """One 64-bit integer for each place; 0: not started yet."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._times = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    @classmethod
    def create(cls, path: Path, places: int) -> Self:
        """A new board, all zeros. The file is written, so that no job has to wait for its blocks."""
        path.write_bytes(bytes(8 * places))
        return cls(path)

    def note(self, place: int, moment: int) -> None:
        """For jobs: a second start of the same job does not count."""
        if not self._times[place]:
            self._times[place] = moment

    def count(self) -> None:
        """For jobs: one more. Called in the only thread of a worker process that performs jobs."""
        self._times[os.getpid() % COUNTERS] += 1

    def counted(self) -> int:
        """How many jobs of all processes have counted since the board was cleared."""
        return sum(self._times[:COUNTERS])

    def started(self, place: int) -> int:
        """When; 0: not yet."""
        return self._times[place]

    def wait(self, places: range, timeout: float) -> list[int]:
        """The start times of all of these. TimeoutError: some did not start in time."""
        deadline = time.monotonic() + timeout
        while not all(self._times[place] for place in places):
            if time.monotonic() > deadline:
                missing = sum(not self._times[place] for place in places)
                raise TimeoutError(f"{missing} of {len(places)} jobs did not start")
            time.sleep(0.01)
        return [self._times[place] for place in places]

    def clear(self) -> None:
        """Makes all places free again; nothing may be running."""
        for place in range(len(self._times)):
            self._times[place] = 0


@cache
def board_of_node() -> Board:
    """The board whose file the environment names."""
    return Board(Path(os.environ[VARIABLE]))
