"""Schedules: whether they fire, how late, what became of their occurrences, which are overdue or were stopped."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from grafana.frame import fill, on_prometheus
from grafana.panels import AMBER, RED, Query, Words, heat, lines, number, row
from grafana.promql import buckets, of_cluster, quantile, rate, whole

LAG = "cluster_schedule_lag_seconds"
LATE = "1 - sum({}) / sum({})".format(rate(f"{LAG}_bucket", 'le="1.0"'), rate(f"{LAG}_count"))
"""The share that fires more than a second late, as the alert ClusterSchedulesLate counts it."""


def dashboard() -> Dashboard:
    """jobcluster-schedules. A schedule is never a label: `cluster schedule list` and cluster.schedules name them."""
    frame = on_prometheus(
        "schedules", "Schedules", "Whether schedules fire, how late, and which of them need somebody.", []
    )
    return fill(frame, *_now(), row("Occurrences"), *_occurrences(), row("Schedules by state"), *_states())


def _of_state(state: str) -> str:
    return "sum({})".format(whole("cluster_schedules", f'state="{state}"'))


def _in_an_hour(results: str) -> str:
    return "increase({}[1h])".format(of_cluster("cluster_schedule_fires_total", f'result=~"{results}"'))


def _now() -> Iterator[Builder[Panel] | Row]:
    yield number(
        Words(
            "Overdue",
            "Schedules of which no job has succeeded in the time that is expected of them, whatever the reason.",
            "cluster schedule list names them. Runbook: docs/runbooks.md#clusterschedulesoverdue.",
        ),
        Query(f"sum({whole('cluster_schedules_overdue')})"),
        "none",
        ((1, RED),),
    )
    yield number(
        Words(
            "Deactivated",
            "Schedules that do not fire until somebody activates them: their job failed for good or said so, or somebody did it.",
            "last_error of cluster.schedules says why. Runbook: docs/runbooks.md#clusterscheduledeactivated.",
        ),
        Query(_of_state("deactivated")),
        "none",
        ((1, AMBER), (100, RED)),
    )
    yield number(
        Words(
            "More than a second late",
            "The share of what fires now. Nothing, if nothing does.",
            "no node was up, or Postgres is slow. Runbook: docs/runbooks.md#clusterscheduleslate.",
        ),
        Query(LATE),
        "percentunit",
        ((0.01, AMBER), (0.05, RED)),
    )
    yield number(
        Words(
            "Could not fire",
            "Occurrences in the last hour whose job could not be inserted.",
            "schedule_failed in the log says why: its table is gone, or refuses its values.",
        ),
        Query(f"sum({_in_an_hour('failed|postponed')})"),
        "short",
        ((1, AMBER), (10, RED)),
    )
    yield number(
        Words("Active", "Schedules that fire when they are due.", "so many that they cost more than their jobs do?"),
        Query(_of_state("active")),
        "short",
        ((100_000, RED),),
    )
    yield number(
        Words(
            "Stopped until a reload",
            "Schedules whose job has returned STOP.",
            "is it meant? cluster schedule reload lets them go on, and so does a restart of the whole cluster.",
        ),
        Query(_of_state("stopped")),
        "none",
        ((100, AMBER), (1000, RED)),
    )


def _occurrences() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words(
            "Fires by result",
            "Occurrences a second. Skipped and held: the job before was not finished; missed: nobody was up.",
            "failed and postponed are never right: the log says why. Skipped or held all the time: the job takes too long.",
        ),
        [Query(f"sum by (result) ({rate('cluster_schedule_fires_total')})", "{{result}}")],
        "ops",
        ((1000, RED),),
        stacked=True,
        colors={"/failed|postponed/": "red", "/missed/": "orange"},
    )
    yield lines(
        Words(
            "Not fired, in an hour",
            "Occurrences without a job of their own: skipped, missed, failed or postponed.",
            "skipped: raise the interval, or set overlap. Missed: nodes were down. Failed: see schedule_failed in the log.",
        ),
        [
            Query(f"sum by (result) ({_in_an_hour('skipped|missed|failed|postponed')})", "{{result}}"),
        ],
        "short",
        ((100, AMBER), (1000, RED)),
    )
    yield heat(
        Words(
            "Lag",
            "From when an occurrence was due until its job was inserted.",
            "what lies above 1 s is late: no node was up, many were due at once, or Postgres is slow.",
        ),
        Query(buckets(LAG)),
        ((1, RED),),
    )
    yield lines(
        Words(
            "Lag, half and 99 %",
            "The same as two lines.",
            "no node was up, many were due at once, or Postgres is slow. Runbook: docs/runbooks.md#clusterscheduleslate.",
        ),
        [Query(quantile(share, LAG), text) for share, text in ((0.5, "half"), (0.99, "99 %"))],
        "s",
        ((0.1, AMBER), (1, RED)),
    )


def _states() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words(
            "States",
            "Each counted up to 10,000. Sleeping: runs again 24 hours after its last run.",
            "a schedule that is deactivated or stopped does not fire: cluster schedule list says which and why.",
        ),
        [Query(f"sum by (state) ({whole('cluster_schedules')})", "{{state}}")],
        "short",
        ((100_000, RED),),
        stacked=True,
        colors={"/deactivated/": "red", "/stopped/": "orange"},
    )
    yield lines(
        Words(
            "Overdue and deactivated",
            "Schedules that need somebody.",
            "Runbooks: docs/runbooks.md#clusterschedulesoverdue and docs/runbooks.md#clusterscheduledeactivated.",
        ),
        [
            Query(f"sum({whole('cluster_schedules_overdue')})", "overdue"),
            Query(_of_state("deactivated"), "deactivated"),
        ],
        "short",
        ((1, AMBER), (10, RED)),
    )
