"""Every Prometheus object of a node, under the names that dashboards rely on. `events` feeds them."""

from __future__ import annotations

import time
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TypeAlias

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import values as value_classes
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""1 ms to 1 h: waiting and running."""
DATABASE_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""0.25 ms to 10 s: round trips."""

registry = CollectorRegistry()
"""Of this node. prometheus-client's own is left to job code, whose metrics come from the workers."""
ProcessCollector(registry=registry)
PlatformCollector(registry=registry)
GCCollector(registry=registry)

value_classes.ValueClass = value_classes.MutexValue  # PROMETHEUS_MULTIPROC_DIR is about somebody else's processes
warnings.filterwarnings("ignore", "(Removal of|Clearing) labels", UserWarning, "cluster")
Counter = partial(prometheus_client.Counter, registry=registry)
Gauge = partial(prometheus_client.Gauge, registry=registry)
Histogram = partial(prometheus_client.Histogram, registry=registry)

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
reloads = Counter("cluster_reloads", "Times that job code was to be loaded anew", ["result"])
rings = Counter("cluster_doorbell_rings", "Notifications that woke this node")
listener_reconnects = Counter("cluster_listener_reconnects", "Times the listening connection was made anew")


MOST_QUEUES = 200
"""Names of queues that a node tells apart; a queue per tenant must not make a series per tenant."""
_queues: dict[bytes | None, str] = {b"default": "default"}


def queue_label(queue: bytes | None) -> str:
    """The name of a queue for a label: one of the first so many, or "(other)"."""
    label = _queues.get(queue)
    if label is None:
        if len(_queues) >= MOST_QUEUES:
            return "(other)"
        label = _queues[queue] = (queue or b"").decode()
    return label


MOST_EXEMPLARS = 10_000
"""Of a histogram, those of its series aside: whatever workers tell of."""


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
        self._exemplars: dict[tuple[tuple[str, ...], int], Exemplar] = {}
        """By labels and number of the bucket."""
        registry.register(self)

    def observe(self, labels: tuple[str, ...], values: Sequence[float]) -> None:
        counts, total = self._series.setdefault(labels, ([0] * (len(self._bounds) + 1), [0.0]))
        bounds = self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        total[0] += sum(values)

    def exemplify(self, labels: tuple[str, ...], value: float, trace_id: str) -> None:
        """The last one of each bucket is kept. An attempt may be told of before its outcome is written, and with it its series."""
        if labels in self._series or len(self._exemplars) < MOST_EXEMPLARS:
            exemplar = Exemplar({"trace_id": trace_id}, value, time.time())
            self._exemplars[labels, bisect_left(self._bounds, value)] = exemplar

    def totals(self) -> dict[str, tuple[int, float]]:
        """How many values, and their sum, by the first label."""
        found: dict[str, tuple[int, float]] = {}
        for labels, (counts, total) in self._series.items():
            count, value = found.get(labels[0], (0, 0.0))
            found[labels[0]] = count + sum(counts), value + total[0]
        return found

    def series(self) -> Iterator[tuple[tuple[str, ...], list[int], float]]:
        """Labels, how many values are in each bucket, and the sum of all."""
        for labels, (counts, total) in self._series.items():
            yield labels, counts, total[0]

    def describe(self) -> list[Metric]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, (counts, total) in list(self._series.items()):
            upto = list(accumulate(counts))
            bounds = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for number, (bound, count) in enumerate(zip(bounds, upto, strict=True)):
                example = self._exemplars.get((labels, number))
                buckets.append((bound, count) if example is None else (bound, count, example))
            family.add_metric(labels, buckets, total[0])
        yield family


wait_seconds = BatchHistogram("cluster_job_wait_seconds", "From due to started", ["job_type", "queue"], SECONDS)
run_seconds = BatchHistogram("cluster_job_run_seconds", "Of one attempt", ["job_type", "queue", "outcome"], SECONDS)


def exemplify(job_type: str, queue: str, outcome: str, trace_id: str, seconds: float) -> None:
    """An attempt, with the trace that shows what it did."""
    run_seconds.exemplify((job_type, queue_label(queue.encode()), outcome), seconds, trace_id)


claim_seconds = Histogram("cluster_claim_seconds", "Round trip of one claim", buckets=DATABASE_SECONDS)
finish_seconds = Histogram("cluster_finish_seconds", "Round trip of one batch of outcomes", buckets=DATABASE_SECONDS)
claim_batch = Histogram(
    "cluster_claim_batch_jobs",
    "Jobs taken by one claim",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)

schedule_fires = Counter("cluster_schedule_fires", "Occurrences of schedules that this node has dealt with", ["result"])
schedule_lag = Histogram("cluster_schedule_lag_seconds", "From due to the job's insert", buckets=SECONDS)

trouble = Gauge(
    "cluster_trouble", "1 while something wrong with a job type holds it, or rows of it, back", ["job_type", "reason"]
)
slots = Gauge("cluster_slots", "Jobs this node can perform at once", ["state"])
worker_memory = Gauge(
    "cluster_worker_memory_bytes", "Resident memory of this node's worker processes; what they share is counted in each"
)
largest_worker_memory = Gauge("cluster_largest_worker_memory_bytes", "Resident memory of the largest worker process")
heartbeat_age = Gauge("cluster_heartbeat_age_seconds", "Since this node last renewed its lease")
clock_offset = Gauge("cluster_clock_offset_seconds", "By how much the database's clock is ahead of this node's")
build = prometheus_client.Info("cluster_build", "Version of this node", registry=registry)


OUTCOMES = ("succeeded", "failed", "retry", "timed_out", "cancelled", "snoozed", "crashed")
_shown: set[tuple[str, str]] = set()


def _show_queue(job_type: str, queue: str) -> None:
    if (job_type, queue) not in _shown:
        _shown.add((job_type, queue))
        wait_seconds.observe((job_type, queue), ())
        for outcome in OUTCOMES:
            finished.labels(job_type, queue, outcome)


def count_claimed(job_type: str, queue: bytes | None, jobs: int) -> None:
    label = queue_label(queue)
    _show_queue(job_type, label)
    claimed.labels(job_type, label).inc(jobs)


def show_at_zero(job_types: Mapping[str, str]) -> None:
    """Shows at 0 what alerts and dashboards watch for an increase: that of a series which begins at 1 would go unseen.

    job_types: each with the queue of its class; those of other queues appear when jobs of them are claimed.
    """
    for job_type, queue in job_types.items():
        _show_queue(job_type, queue_label(queue.encode()))
        for counter in (claims_lost, released, rescued, set_aside):
            counter.labels(job_type)
    for reason in ("crashed", "blocked", "memory", "hung", "forkserver_died"):
        worker_exits.labels(reason)
    for result in ("done", "failed"):
        reloads.labels(result)
    for result in ("fired", "skipped", "held", "missed", "failed", "postponed"):
        schedule_fires.labels(result)


class ClusterWide(Collector):
    """Gauges of the whole cluster, given as text and labels by name. One node shows them at a time, the others nothing.

    Written by the coordinator's loop, read by the scraping thread: a scrape sees one census or the other, never half of one.
    """

    def __init__(self, gauges: Mapping[str, tuple[str, list[str]]]) -> None:
        self._gauges = gauges
        self._samples: Samples = {}
        registry.register(self)

    def show(self, samples: Samples) -> None:
        """These in place of what was shown before; of names that are not among them, nothing."""
        self._samples = samples

    def describe(self) -> list[Metric]:
        return [GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in self._gauges.items()]

    def collect(self) -> Iterator[Metric]:
        for name, values in self._samples.items():
            text, labels = self._gauges[name]
            family = GaugeMetricFamily(name, text, labels=labels)
            for label_values, value in values.items():
                family.add_metric(label_values, value)
            yield family


Samples: TypeAlias = Mapping[str, Mapping[tuple[str, ...], float]]
"""Values of gauges, by name and label values."""

cluster_wide = ClusterWide(
    {
        "cluster_jobs": ("Jobs that wait or run, counted up to a bound", ["job_type", "queue", "status"]),
        "cluster_jobs_count_limit": ("Where the counts of jobs that may begin end, for each queue", ["job_type"]),
        "cluster_oldest_ready_job_age_seconds": ("How long the oldest job has been ready", ["job_type", "queue"]),
        "cluster_concurrency_limit": ("Jobs that may run at once", ["job_type"]),
        "cluster_concurrency_in_use": ("Jobs of a type with a limit that run", ["job_type"]),
        "cluster_unroutable_jobs": ("Jobs whose type or queue no live node serves", ["job_type"]),
        "cluster_nodes": ("Nodes; silent: the lease is over", ["state"]),
        "cluster_job_type_paused": ("1 while operators have paused the type", ["job_type"]),
        "cluster_queue_paused": ("1 while operators have paused the queue; * is everything", ["queue"]),
        "cluster_table_live_rows": ("Rows of the job table, as the statistics have it", ["job_type"]),
        "cluster_table_dead_rows": ("Row versions that vacuum has not removed yet, likewise", ["job_type"]),
        "cluster_table_bytes": ("Of the job table on disk, with its indexes", ["job_type"]),
        "cluster_schedules": ("Schedules, counted up to a bound", ["state"]),
        "cluster_schedules_overdue": ("Schedules of which no job has succeeded in time", []),
        "cluster_oldest_transaction_seconds": ("Since the oldest transaction began; vacuum keeps what it may see", []),
    }
)
