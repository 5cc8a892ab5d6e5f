"""How many sessions of the database wait for a heavyweight lock, asked many times a second."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psycopg

INTERVAL = 0.05
"""Seconds between two questions."""
QUESTION = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'
"""


class LockWaits:
    """Asks while it is entered, in a thread and on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._found: list[int] = []
        """Appended to by the thread, read when it has ended."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    @property
    def mean(self) -> float:
        return sum(self._found) / max(1, len(self._found))

    @property
    def most(self) -> int:
        return max(self._found, default=0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with psycopg.connect(self._url, autocommit=True, prepare_threshold=0) as connection:
            while not self._stop.wait(INTERVAL):
                row = connection.execute(QUESTION).fetchone()
                self._found.append(row[0] if row else 0)
