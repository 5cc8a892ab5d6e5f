"""A closed loop: as jobs are performed, as many new ones are inserted, so that the same number waits all the time."""

from __future__ import annotations

import time

from psycopg import sql

from bench.harness import Bench

WAITING = 2000
"""Jobs that wait, run, or have their outcome on its way."""
FEWEST = 250
"""Rows of one INSERT, at least."""
PAUSE = 0.002
"""Seconds until the next look at the board, while not so many have been performed."""


class Feeder:
    """Feeds a table whose jobs count themselves; starts the count anew. Nobody else may insert or count meanwhile."""

    def __init__(self, bench: Bench, table: str) -> None:
        self._bench = bench
        self._insert = sql.SQL("INSERT INTO {} (number) SELECT generate_series(1, %s)").format(sql.Identifier(table))
        self._inserted = 0
        bench.board.clear()

    def run(self, seconds: float) -> float:
        """Feeds for so long; returns the jobs performed per second meanwhile."""
        before, began = self._bench.board.counted(), time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            missing = WAITING - (self._inserted - self._bench.board.counted())
            if missing >= FEWEST:
                self._bench.connection.execute(self._insert, [missing])
                self._inserted += missing
            else:
                time.sleep(PAUSE)
        return (self._bench.board.counted() - before) / passed
