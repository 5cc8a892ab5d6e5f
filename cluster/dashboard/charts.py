"""Throughput and latency of the last hour as small charts, with the deploys marked: SVG, drawn here from `cluster.minutes`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from cluster.dashboard.database import Connection, Database
from cluster.dashboard.deploys import Deploy, known_deploys
from cluster.dashboard.job_tables import JobTable, all_tables
from cluster.dashboard.words import age, number
from cluster.metrics import SECONDS

MINUTES = 60
SETTLED = timedelta(minutes=2)
"""Of the minutes since then, not all nodes have told."""
FRESH = 15.0
"""Seconds for which all viewers are shown what one of them was."""
WIDTH, HEIGHT = 240, 44
BAR = WIDTH / MINUTES


@dataclass
class Chart:
    """Of one job type; a value for each minute, oldest first. wait: within so many seconds of being due 95 % began; None: none."""

    table: JobTable
    succeeded: list[int] = field(default_factory=lambda: [0] * MINUTES)
    failed: list[int] = field(default_factory=lambda: [0] * MINUTES)
    wait: list[float | None] = field(default_factory=lambda: [None] * MINUTES)

    @property
    def attempts(self) -> list[int]:
        return [sum(each) for each in zip(self.succeeded, self.failed, strict=True)]

    @property
    def throughput(self) -> str:
        """In words: what the picture shows to those who do not see it."""
        most = max(self.attempts)
        return (
            f"{number(sum(self.succeeded))} attempts succeeded and {number(sum(self.failed))} failed in the last hour,"
            f" {number(most)} a minute at most, {number(self.attempts[-1])} in the last one"
        )

    @property
    def latency(self) -> str:
        known = [wait for wait in self.wait if wait is not None]
        if not known:
            return "nothing began in the last hour"
        return f"95 % began within {brief(known[-1])} of being due, in the last minute that had any; at worst {brief(max(known))}"

    @property
    def wait_words(self) -> tuple[str, str]:
        """What is written beside the picture: the last value, and the worst."""
        known = [wait for wait in self.wait if wait is not None]
        return (
            (f"{brief(known[-1])} to begin", f"p95, {brief(max(known))} at worst") if known else ("—", "nothing began")
        )

    @property
    def succeeded_path(self) -> str:
        return bars([0] * MINUTES, self.succeeded, max(self.attempts))

    @property
    def failed_path(self) -> str:
        return bars(self.succeeded, self.failed, max(self.attempts))

    @property
    def wait_path(self) -> str:
        return line(self.wait)


@dataclass(frozen=True)
class Hour:
    """charts: of all types that had something in it, the busiest first. begins: of the first minute."""

    begins: datetime
    charts: list[Chart]
    deploys: list[Deploy]

    @property
    def deploy_path(self) -> str:
        return "".join(f"M{x:g} 0V{HEIGHT}" for x in (self.place(deploy.at) for deploy in self.deploys))

    def place(self, at: datetime) -> float:
        return round((at - self.begins).total_seconds() / 60 * BAR, 1)


class Charts:
    """Owns what was read last: it is read every few seconds at most, whoever looks. Empty, if it can't be read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read_at = float("-inf")
        self._hour: Hour | None = None

    async def hour(self) -> Hour | None:
        if time.monotonic() - self._read_at > FRESH:
            self._hour = await self._read()
            self._read_at = time.monotonic()
        return self._hour

    async def _read(self) -> Hour | None:
        try:
            async with self._database.reading() as connection:
                return await look(connection)
        except psycopg.Error:  # an older schema, or no privilege: charts are no reason to show nothing
            return None


async def look(connection: Connection) -> Hour:
    """Of the minutes that are settled."""
    ends = (datetime.now(UTC) - SETTLED).replace(second=0, microsecond=0)
    hour = {"from": ends - timedelta(minutes=MINUTES), "to": ends}
    charts = {table.oid: Chart(table) for table in await all_tables(connection)}
    for row in await _rows(connection, _ATTEMPTS, hour):
        if chart := charts.get(row["oid"]):
            chart.succeeded[row["place"]], chart.failed[row["place"]] = row["succeeded"], row["failed"]
    for row in await _rows(connection, _WAITS, hour):
        if chart := charts.get(row["oid"]):
            chart.wait[row["place"]] = percentile(dict(zip(row["buckets"], row["jobs"], strict=True)), 0.95)
    busy = sorted((chart for chart in charts.values() if any(chart.attempts)), key=lambda chart: -sum(chart.attempts))
    known = await known_deploys(connection)
    return Hour(hour["from"], busy, [each for each in known if hour["from"] <= each.at < ends])


async def _rows(connection: Connection, query: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    return await (await connection.execute(query.encode(), values)).fetchall()


_ATTEMPTS = """
SELECT job_table::oid::bigint AS oid, (extract(epoch FROM minute - %(from)s) / 60)::integer AS place,
       sum(succeeded)::bigint AS succeeded, sum(failed)::bigint AS failed
FROM cluster.minutes WHERE minute >= %(from)s AND minute < %(to)s GROUP BY job_table, minute
"""  # by the primary key, as the next one
_WAITS = """
SELECT oid, (extract(epoch FROM minute - %(from)s) / 60)::integer AS place, array_agg(bucket) AS buckets, array_agg(jobs) AS jobs
FROM (
    SELECT job_table::oid::bigint AS oid, minute, bucket::integer, sum(jobs)::bigint AS jobs
    FROM cluster.minutes, unnest(waited) WITH ORDINALITY AS w (jobs, bucket)
    WHERE minute >= %(from)s AND minute < %(to)s AND jobs > 0 GROUP BY job_table, minute, bucket
) AS waited GROUP BY oid, minute
"""


def percentile(buckets: dict[int, int], share: float) -> float:
    """buckets: how many were within the nth bound of SECONDS, from 1, and above the one before. Even within a bucket."""
    left = share * sum(buckets.values())
    for bucket, count in sorted(buckets.items()):
        upper = SECONDS[min(bucket, len(SECONDS)) - 1]
        lower = SECONDS[bucket - 2] if 2 <= bucket <= len(SECONDS) else (0.0 if bucket < 2 else upper)
        if left <= count:
            return lower + (upper - lower) * left / count
        left -= count
    return SECONDS[-1]


def bars(below: Sequence[int], values: Sequence[int], most: int) -> str:
    """A path of SVG: one bar for each minute that has a value, on top of those below."""
    found = []
    for place, (base, value) in enumerate(zip(below, values, strict=True)):
        if value:
            foot, top = (round(HEIGHT * (1 - each / most), 1) for each in (base, base + value))
            found.append(f"M{place * BAR:g} {foot:g}V{top:g}h{BAR - 1:g}V{foot:g}z")
    return "".join(found)


def line(values: Sequence[float | None]) -> str:
    """A path of SVG from minute to minute; it ends where there is no value."""
    most = max((value for value in values if value is not None), default=0.0) or 1.0
    found, is_drawing = [], False
    for place, value in enumerate(values):
        if value is not None:
            x, y = (place + 0.5) * BAR, round((HEIGHT - 2) * (1 - value / most) + 1, 1)
            found.append(f"{'L' if is_drawing else 'M'}{x:g} {y:g}" + ("" if is_drawing else "h0"))
        is_drawing = value is not None
    return "".join(found)


def brief(seconds: float) -> str:
    """35 ms, 2.1 s, 12 min."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else age(seconds)
