"""Histograms that take many values at once, and the traces that go with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.samples import Exemplar

from cluster import metrics
from cluster.metrics import BatchHistogram

JOB = ("MailJob", "default", "succeeded")


@pytest.fixture
def histogram() -> Iterator[BatchHistogram]:
    made = BatchHistogram("seconds", "Of a test", ["job_type", "queue", "outcome"], (0.1, 1.0))
    yield made
    metrics.registry.unregister(made)


def exemplars(histogram: BatchHistogram) -> list[tuple[str, Exemplar]]:
    """With the bound of their bucket."""
    samples = [sample for family in histogram.collect() for sample in family.samples]
    return [(sample.labels["le"], sample.exemplar) for sample in samples if sample.exemplar is not None]


def test_a_trace_that_is_told_of_before_its_outcome_is_written_is_there_with_it(histogram: BatchHistogram) -> None:
    histogram.exemplify(JOB, 0.5, "trace")
    assert exemplars(histogram) == []
    histogram.observe(JOB, [0.5])
    [(bound, exemplar)] = exemplars(histogram)
    assert (bound, exemplar.value, exemplar.labels) == ("1.0", 0.5, {"trace_id": "trace"})


def test_of_each_bucket_the_last_trace_is_kept(histogram: BatchHistogram) -> None:
    histogram.observe(JOB, [0.05, 0.5, 0.6])
    for value, trace in ((0.05, "short"), (0.5, "first"), (0.6, "last")):
        histogram.exemplify(JOB, value, trace)
    found = [(bound, exemplar.labels["trace_id"]) for bound, exemplar in exemplars(histogram)]
    assert found == [("0.1", "short"), ("1.0", "last")]


def test_traces_of_what_is_never_counted_are_no_more_than_so_many(
    histogram: BatchHistogram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_EXEMPLARS", 2)
    for number in range(3):
        histogram.exemplify(("MailJob", "default", str(number)), 0.5, "trace")
    for number in range(3):
        histogram.observe(("MailJob", "default", str(number)), [0.5])
    assert len(exemplars(histogram)) == 2
    histogram.exemplify(("MailJob", "default", "2"), 0.5, "trace")  # its series is there now
    assert len(exemplars(histogram)) == 3
