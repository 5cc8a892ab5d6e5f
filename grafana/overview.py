"""Overview: is it healthy; what waits and why; who is saturated."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from grafana.advice import FIRST_STEPS, WHY, WORST, why, worst
from grafana.frame import TO_NODE, TO_TYPE, address, fill, on_prometheus
from grafana.panels import AMBER, GREEN, OUTCOMES, RED, Column, Query, Words, lines, number, row, rows, sentence
from grafana.promql import FAILED, of_cluster, quantile, rate, whole

READY = whole("cluster_jobs", 'status="not_started"')
IN_TIME = 'le="30.0"'
"""The bucket of the objective, as in rules.yaml."""
UPWARDS = ((None, RED), (1, GREEN))
"""Red is none."""


def dashboard() -> Dashboard:
    """jobcluster-overview."""
    frame = on_prometheus(
        "overview",
        "Overview",
        "Is it healthy; what waits and why; who is saturated. The first line says what to do first.",
    )
    first_screen = (_verdict(), *_figures(), _alerts(), row("What waits, and why"), *_waiting())
    return fill(frame, *first_screen, row("Who is saturated"), *_saturated())


def _verdict() -> Builder[Panel]:
    return sentence(
        Words(
            "What to do first",
            "The worst of what is wrong now, by the limits of the alerts, and what to do about it. It needs no rules.",
            "do what it says. The table below has the details; docs/runbooks.md has a section for each alert.",
        ),
        Query(worst()),
        WORST,
    )


def _alerts() -> Builder[Panel]:
    labels = "alertname, severity, job_type, queue, instance, reason"
    alerts = of_cluster("ALERTS", 'alertname=~"Cluster.+"', 'alertstate="firing"')
    return rows(
        Words(
            "Alerts that fire",
            "From the rules of grafana/prometheus/rules.yaml, if Prometheus has loaded them.",
            "do what stands beside it, the critical ones first; docs/runbooks.md has a section for each.",
        ),
        [Query(f'max by (first, {labels}) (label_replace({alerts}, "first", "$1", "alertname", "(.+)"))')],
        {
            "severity": Column(
                texts={"critical": ("critical", RED), "warning": ("warning", AMBER), "info": ("info", "blue")}, width=90
            ),
            "alertname": Column(width=210),
            "first": Column(texts={alert: (step, "") for alert, step in FIRST_STEPS.items()}),
            "job_type": Column(link=TO_TYPE),
            "queue": Column(),
            "instance": Column(link=TO_NODE),
            "reason": Column(),
        },
        height=6,
        no_value="No alert fires",
    )


def _figures() -> Iterator[Builder[Panel] | Row]:
    live = whole("cluster_nodes", 'state="live"')
    yield number(
        Words(
            "Free slots",
            "Jobs that could begin at once, on all nodes.",
            "all slots are busy, or no node is live. If jobs wait, add nodes or CLUSTER_CONCURRENCY.",
        ),
        Query("sum(" + of_cluster("cluster_slots", 'state="free"') + ")"),
        "none",
        UPWARDS,
        link=address("nodes"),
    )
    yield number(
        Words(
            "Live nodes",
            "Nodes that hold a lease and may claim jobs.",
            "start nodes; if they run, Prometheus can't reach them.",
        ),
        Query(f"sum({live})"),
        "none",
        UPWARDS,
        link=address("nodes"),
    )
    yield number(
        Words(
            "Longest wait",
            "For how long the oldest job that may begin has waited.",
            "see in the table below why jobs of its type wait.",
        ),
        Query(f"max({whole('cluster_oldest_ready_job_age_seconds')})"),
        "s",
        ((60, AMBER), (300, RED)),
    )
    early = f"sum({rate('cluster_job_wait_seconds_bucket', IN_TIME)})"
    yield number(
        Words(
            "Late starts",
            "Share of jobs that started more than 30 s after they were due. The objective is 1 %.",
            "if all slots are busy, add nodes; if not, look for a limit, a pause, or slow claims.",
        ),
        Query(f"1 - {early} / sum({rate('cluster_job_wait_seconds_count')})"),
        "percentunit",
        ((0.01, AMBER), (0.144, RED)),
        link=address("job-type"),
        no_value="no starts",
    )
    yield number(
        Words(
            "Failing attempts",
            "Share of all attempts that fail, time out or crash, those that are tried again included.",
            "open the job type that fails, and read last_error. If what it calls is down, pause it: that saves the attempts.",
        ),
        Query(f"sum({rate('cluster_jobs_finished_total', FAILED)}) / sum({rate('cluster_jobs_finished_total')})"),
        "percentunit",
        ((0.05, AMBER), (0.2, RED)),
        link=address("job-type"),
        no_value="no attempts",
    )
    yield number(
        Words(
            "Oldest transaction",
            "Age of the oldest transaction in the database. What it may see, vacuum must keep, and claims step over it.",
            "end it: SELECT pid, query FROM pg_stat_activity ORDER BY xact_start LIMIT 5, then pg_terminate_backend(pid).",
        ),
        Query(f"max({whole('cluster_oldest_transaction_seconds')})"),
        "s",
        ((300, AMBER), (1800, RED)),
        link=address("postgres"),
    )


def _waiting() -> Iterator[Builder[Panel] | Row]:
    by_status = {
        name: "sum by (job_type) (" + whole("cluster_jobs", f'status="{name}"') + ")"
        for name in ("not_started", "running", "retry", "scheduled")
    }
    yield rows(
        Words(
            "Why jobs wait",
            "One row for each job type. Counts end at 10,000: so many there are at least.",
            "do what stands under `why`; a click on the type shows more of it.",
        ),
        [
            Query(why(), "why"),
            Query(f"max by (job_type) ({whole('cluster_oldest_ready_job_age_seconds')})", "longest wait"),
            *(Query(text, name.replace("_", " ")) for name, text in by_status.items()),
            Query(f"sum by (job_type) ({whole('cluster_concurrency_limit')})", "limit"),
            Query(f"sum by (job_type) ({whole('cluster_unroutable_jobs')})", "nobody serves"),
        ],
        {
            "job_type": Column(link=TO_TYPE, width=220),
            "why": Column(texts=WHY, width=520),
            "longest wait": Column(unit="s", steps=((60, AMBER), (300, RED))),
            "not started": Column(),
            "running": Column(),
            "limit": Column(),
            "retry": Column(),
            "scheduled": Column(),
            "nobody serves": Column(steps=((1, RED),)),
        },
        worst="why",
    )
    yield lines(
        Words(
            "Jobs that wait",
            "Jobs that may begin, by type.",
            "thousands wait. If the line climbs, more comes than is performed: add nodes, or raise the limit that is full.",
        ),
        [Query(f"sum by (job_type) ({READY})", "{{job_type}}")],
        "short",
        ((5000, RED),),
        stacked=True,
    )
    yield lines(
        Words(
            "Longest wait by type",
            "For how long the oldest job that may begin has waited.",
            "the table above says why. A line that rises by a second each second: nothing of this type begins.",
        ),
        [Query(f"max by (job_type) ({whole('cluster_oldest_ready_job_age_seconds')})", "{{job_type}}")],
        "s",
        ((60, AMBER), (300, RED)),
    )


def _saturated() -> Iterator[Builder[Panel] | Row]:
    busy = "sum by (instance) (" + of_cluster("cluster_slots", 'state="busy"') + ")"
    yield lines(
        Words(
            "Busy slots by node",
            "Share of a node's slots that perform jobs.",
            "the node is full. If all are and jobs wait, add nodes; if only some are, the others serve other queues.",
        ),
        [Query(f"{busy} / sum by (instance) ({of_cluster('cluster_slots')})", "{{instance}}")],
        "percentunit",
        ((0.9, AMBER), (1, RED)),
        highest=1,
    )
    limit = f"sum by (job_type) ({whole('cluster_concurrency_limit')})"
    yield lines(
        Words(
            "Limits in use by type",
            "Running jobs as a share of the limit of their type. Types without a limit are not here.",
            "the limit is full. If jobs wait and what it protects can bear more, raise max_concurrency_override.",
        ),
        [Query(f"sum by (job_type) ({whole('cluster_concurrency_in_use')}) / ({limit} > 0)", "{{job_type}}")],
        "percentunit",
        ((0.9, AMBER), (1, RED)),
        highest=1,
    )
    yield lines(
        Words(
            "Attempts by outcome",
            "How many attempts end a second, and how.",
            "failed, timed_out and crashed attempts: open the job type, and read last_error.",
        ),
        [Query(f"sum by (outcome) ({rate('cluster_jobs_finished_total')})", "{{outcome}}")],
        "ops",
        (),
        stacked=True,
        colors=OUTCOMES,
    )
    yield lines(
        Words(
            "Round trips to Postgres",
            "How long a claim and a batch of outcomes take, 99 % of them.",
            "Postgres is slow or overloaded: look for an old transaction and dead rows on the dashboard Postgres.",
        ),
        [
            Query(quantile(0.99, "cluster_claim_seconds"), "claim"),
            Query(quantile(0.99, "cluster_finish_seconds"), "finish"),
        ],
        "s",
        ((0.1, AMBER), (1, RED)),
    )
