"""Words of PromQL that all dashboards use alike.

Metrics of nodes are summed over nodes. Gauges of the whole cluster come from one node at a time, for a moment from two: `whole`
takes the largest. Clusters are told apart by the label `cluster`; the variable's "All" also matches where there is no such label.
"""

from __future__ import annotations

OF_CLUSTER = 'cluster=~"$cluster"'
OF_TYPE = 'job_type=~"$job_type"'
OF_QUEUE = 'queue=~"$queue"'
OF_NODE = 'instance=~"$node"'
UNEXPECTED_EXITS = 'reason=~"crashed|blocked|memory|hung|forkserver_died"'
"""Of worker processes, as the alert ClusterWorkersCrash counts them."""
FAILED = 'outcome=~"failed|retry|timed_out|crashed"'
"""Attempts, as the alert ClusterJobsFail counts them."""


def of_cluster(metric: str, *matchers: str) -> str:
    """The series of the chosen clusters."""
    return f"{metric}{{{', '.join((OF_CLUSTER, *matchers))}}}"


def whole(metric: str, *matchers: str) -> str:
    """A gauge of the whole cluster."""
    return f"max without (instance, pod) ({of_cluster(metric, *matchers)})"


def rate(metric: str, *matchers: str) -> str:
    """Of a counter, a second."""
    return f"rate({of_cluster(metric, *matchers)}[$__rate_interval])"


def buckets(histogram: str, *matchers: str) -> str:
    """For a heat map: how many fell into each bucket in each step."""
    return f"sum by (le) (increase({of_cluster(histogram + '_bucket', *matchers)}[$__rate_interval]))"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """by: labels to keep, each followed by a comma."""
    return f"histogram_quantile({share}, sum by ({by}le) ({rate(histogram + '_bucket', *matchers)}))"


def ranked(*conditions: tuple[int, str]) -> str:
    """One vector with the rank of every condition that holds: 1 where it does, 0 or nothing where not. For `max`."""
    return "\n  or ".join(
        f'label_replace({rank} * ({condition}), "rank", "{rank}", "", "")' for rank, condition in conditions
    )
