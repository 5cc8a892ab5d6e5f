"""Names of what nodes export, for tests of whatever asks for it."""

from __future__ import annotations

from cluster import metrics

_ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",), "info": ("_info",)}


def exported_metrics() -> set[str]:
    """With their endings, of the series that a query names."""
    return {
        metric.name + ending
        for collector in vars(metrics).values()
        if hasattr(collector, "describe") and not isinstance(collector, type)
        for metric in collector.describe()
        for ending in _ENDINGS[metric.type]
    }
