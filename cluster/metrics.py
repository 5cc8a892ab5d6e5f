"""Every Prometheus object of a node, under the names that dashboards rely on. `events` feeds them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""1 ms to 1 h: waiting and running."""
DATABASE_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""0.25 ms to 10 s: round trips."""

claimed = Counter("cluster_jobs_claimed", "Jobs claimed by this node", ["job_type", "queue"])
finished = Counter("cluster_jobs_finished", "Attempts ended on this node", ["job_type", "queue", "outcome"])
rescued = Counter("cluster_jobs_rescued", "Jobs taken back from lost nodes by this node", ["job_type"])
released = Counter("cluster_jobs_released", "Claims handed back unfinished, the attempt not counted", ["job_type"])
claims_lost = Counter(
    "cluster_claims_lost", "Outcomes that were refused: the claim was no longer this node's", ["job_type"]
)
set_aside = Counter(
    "cluster_jobs_set_aside", "Rows whose trigger or constraint refuses the cluster's update", ["job_type"]
)
worker_exits = Counter("cluster_worker_exits", "Worker processes that ended", ["reason"])
rings = Counter("cluster_doorbell_rings", "Notifications that woke this node")
listener_reconnects = Counter("cluster_listener_reconnects", "Times the listening connection was made anew")


MOST_QUEUES = 200
"""Names of queues that a node tells apart; a queue per tenant must not make a series per tenant."""
_queues: dict[bytes | None, str] = {}


def queue_label(queue: bytes | None) -> str:
    """The name of a queue for a label: one of the first so many, or "(other)"."""
    label = _queues.get(queue)
    if label is None:
        if len(_queues) >= MOST_QUEUES:
            return "(other)"
        label = _queues[queue] = (queue or b"").decode()
    return label


class BatchHistogram(Collector):
    """A histogram that takes many values of one label set at once: per job, Histogram.observe would cost more than the rest.

    Written by the coordinator's loop, read by the scraping thread; a scrape may see half a batch, never a torn number.
    """

    def __init__(self, name: str, text: str, labels: list[str], bounds: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        REGISTRY.register(self)

    def observe(self, labels: tuple[str, ...], values: Sequence[float]) -> None:
        counts, total = self._series.setdefault(labels, ([0] * (len(self._bounds) + 1), [0.0]))
        bounds = self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        total[0] += sum(values)

    def describe(self) -> list[Metric]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, (counts, total) in list(self._series.items()):
            upto = list(accumulate(counts))
            bounds = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
            family.add_metric(labels, list(zip(bounds, upto, strict=True)), total[0])
        yield family


wait_seconds = BatchHistogram("cluster_job_wait_seconds", "From due to started", ["job_type", "queue"], SECONDS)
run_seconds = BatchHistogram("cluster_job_run_seconds", "Of one attempt", ["job_type", "queue", "outcome"], SECONDS)
claim_seconds = Histogram("cluster_claim_seconds", "Round trip of one claim", buckets=DATABASE_SECONDS)
finish_seconds = Histogram("cluster_finish_seconds", "Round trip of one batch of outcomes", buckets=DATABASE_SECONDS)
claim_batch = Histogram(
    "cluster_claim_batch_jobs",
    "Jobs taken by one claim",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)

trouble = Gauge(
    "cluster_trouble", "1 while something wrong with a job type holds it, or rows of it, back", ["job_type", "reason"]
)
slots = Gauge("cluster_slots", "Jobs this node can perform at once", ["state"])
heartbeat_age = Gauge("cluster_heartbeat_age_seconds", "Since this node last renewed its lease")
build = Info("cluster_build", "Version of this node")
