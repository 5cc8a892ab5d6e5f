"""What the tables say while the jobs run: bars on a terminal, a line now and then elsewhere. Only reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection, sql
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

JOBS = {
    "EmailCustomersJob": "email_customers_jobs",
    "ResizeImageJob": "resize_image_jobs",
    "WriteReportJob": "write_report_jobs",
}
ENDED = ("succeeded", "failed", "timed_out", "cancelled")
LINE_INTERVAL = 1.0

_COUNTS = "SELECT status::text, count(*), sum(greatest(attempts_count - 1, 0)) FROM {} GROUP BY status"


@dataclass
class JobCounts:
    """One job table at one moment. statuses: rows by status."""

    statuses: Mapping[str, int]
    retries: int

    @property
    def ended(self) -> int:
        return sum(self.statuses.get(status, 0) for status in ENDED)


Counts = dict[str, JobCounts]


def count_jobs(connection: Connection[Any]) -> Counts:
    """By class name."""
    found: Counts = {}
    for name, table in JOBS.items():
        rows = connection.execute(sql.SQL(_COUNTS).format(sql.Identifier(table))).fetchall()
        found[name] = JobCounts({status: count for status, count, _ in rows}, sum(int(row[2]) for row in rows))
    return found


@dataclass
class Progress:
    """expected: rows of each class at the end. `show` is called with each count."""

    console: Console
    expected: Mapping[str, int]
    began: float = field(default_factory=time.monotonic)
    _history: deque[tuple[float, Counts]] = field(default_factory=deque)
    _printed: float = 0.0

    @contextmanager
    def showing(self) -> Iterator[Callable[[Counts], None]]:
        """Yields what to call with each count."""
        if not self.console.is_terminal:
            yield self._print_line
            return
        with Live(console=self.console, auto_refresh=False) as live:
            yield lambda counts: live.update(self._bars(counts), refresh=True)

    # --- bars ---

    def _bars(self, counts: Counts) -> Group:
        self._remember(counts)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=True, header_style="dim")
        table.add_column("job", no_wrap=True)
        table.add_column("", ratio=1)
        for header in ("done", "running", "waiting", "retry", "later", "jobs/s"):
            table.add_column(header, justify="right", no_wrap=True)
        for name, job in counts.items():
            total = self.expected[name]
            bar = ProgressBar(total, job.ended, complete_style="cyan", finished_style="green")
            numbers = [job.statuses.get(status, 0) for status in ("running", "not_started", "retry", "scheduled")]
            shown = [str(number) if number else "·" for number in numbers]
            table.add_row(name, bar, f"{job.ended}/{total}", *shown, f"{self._rate(name):.0f}")
        retries = sum(job.retries for job in counts.values())
        return Group(table, Text(f"{self._seconds:.1f} s, {retries} retries so far", style="dim"))

    def _remember(self, counts: Counts) -> None:
        now = time.monotonic()
        self._history.append((now, counts))
        while now - self._history[0][0] > 1.5:
            self._history.popleft()

    def _rate(self, name: str) -> float:
        (first, before), (last, after) = self._history[0], self._history[-1]
        return (after[name].ended - before[name].ended) / max(last - first, 0.1)

    # --- lines ---

    def _print_line(self, counts: Counts) -> None:
        now = time.monotonic()
        complete = all(job.ended >= self.expected[name] for name, job in counts.items())
        if now - self._printed < LINE_INTERVAL and not complete:
            return
        self._printed = now
        words = [f"{name.removesuffix('Job')} {job.ended}/{self.expected[name]}" for name, job in counts.items()]
        retries = sum(job.retries for job in counts.values())
        self.console.print(f"{self._seconds:5.1f} s  {'  '.join(words)}  {retries} retries", soft_wrap=True)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.began
