"""Tells once a minute what this node has performed: `cluster.minutes`, from which the dashboard draws its charts.

From the counters that /metrics shows, so it costs a job nothing. A node that has performed nothing writes nothing; what has not
been written when it dies is lost. Whoever writes also prunes, so an idle cluster has no work with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster import metrics, statements
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup
from cluster.coordinator.session import Session
from cluster.fingerprint import FAILURES

INTERVAL = 60.0
"""Seconds."""


@dataclass
class Tally:
    """Of one job type, attempts since the process began. waited: by the buckets of metrics.SECONDS; seconds: that they ran."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited: list[int] = field(default_factory=lambda: [0] * (len(metrics.SECONDS) + 1))

    def since(self, before: Tally) -> Tally:
        return Tally(
            self.succeeded - before.succeeded,
            self.failed - before.failed,
            self.seconds - before.seconds,
            [now - then for now, then in zip(self.waited, before.waited, strict=True)],
        )

    @property
    def is_empty(self) -> bool:
        return not (self.succeeded or self.failed)


class Minutes:
    """`tick` writes one. Shares the finish connection, between batches."""

    def __init__(self, session: Session, lease: Callable[[], Lease | None]) -> None:
        self.wakeup = Wakeup()
        self._session = session
        self._lease = lease
        self._told: dict[str, Tally] = {}

    async def tick(self) -> float:
        lease, now = self._lease(), tallies()
        news = {name: tally.since(self._told.get(name, Tally())) for name, tally in now.items()}
        news = {name: tally for name, tally in news.items() if not tally.is_empty}
        if lease is not None and news:
            async with self._session.use() as connection:
                await connection.execute(statements.statement("insert_minutes"), _parameters(lease, news))
                await connection.execute(statements.statement("prune_minutes"))
            self._told = now
        return INTERVAL


def tallies() -> dict[str, Tally]:
    """By job type."""
    found: defaultdict[str, Tally] = defaultdict(Tally)
    for (job_type, _, outcome), counts, seconds in metrics.run_seconds.series():
        tally = found[job_type]
        tally.seconds += seconds
        if outcome == "succeeded":
            tally.succeeded += sum(counts)
        elif outcome in FAILURES:
            tally.failed += sum(counts)
    for (job_type, _), counts, _ in metrics.wait_seconds.series():
        waited = found[job_type].waited
        for bucket, count in enumerate(counts):
            waited[bucket] += count
    return dict(found)


def _parameters(lease: Lease, news: dict[str, Tally]) -> dict[str, object]:
    tallies = list(news.values())
    return {
        "node": lease.node,
        "job_type": list(news),
        "succeeded": [tally.succeeded for tally in tallies],
        "failed": [tally.failed for tally in tallies],
        "seconds": [tally.seconds for tally in tallies],
        "waited": ["{" + ",".join(map(str, _trimmed(tally.waited))) + "}" for tally in tallies],
    }


def _trimmed(counts: Sequence[int]) -> list[int]:
    """Without the empty buckets at its end."""
    last = max((bucket for bucket, count in enumerate(counts) if count), default=-1)
    return list(counts[: last + 1])
