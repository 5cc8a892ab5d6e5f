"""One job type: rate, outcomes, waits and runs, retries, its limit, what is slow, what fails. "All" shows all types together."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from grafana.frame import JOB_TYPES, QUEUES, fill, on_prometheus
from grafana.panels import AMBER, GREEN, OUTCOMES, RED, Query, Words, heat, lines, number, row
from grafana.promql import FAILED, OF_CLUSTER, OF_QUEUE, OF_TYPE, buckets, of_cluster, quantile, rate, whole

HERE = (OF_TYPE, OF_QUEUE)


def dashboard() -> Dashboard:
    """jobcluster-job-type."""
    frame = on_prometheus(
        "job-type",
        "Job type",
        "How much of it runs and how it ends; why it waits; what is slow; what fails.",
        [JOB_TYPES, QUEUES],
    )
    parts = (
        *_figures(),
        row("How much, and how it ends"),
        *_rate(),
        row("Waiting"),
        *_waits(),
        row("Running"),
        *_runs(),
    )
    return fill(frame, *parts, row("Errors"), *_errors())


def _figures() -> Iterator[Builder[Panel] | Row]:
    ended = f"sum({rate('cluster_jobs_finished_total', *HERE)})"
    yield number(
        Words(
            "Attempts a second",
            "How many attempts end a second.",
            "nothing is performed: see below what waits, and why.",
        ),
        Query(ended),
        "ops",
        ((None, RED), (1e-9, GREEN)),
    )
    yield number(
        Words(
            "Failing attempts",
            "Share of the attempts that fail, time out or crash, those that are tried again included.",
            "read last_error of its table, or the lines job_failed of the log. If what it calls is down, pause the type.",
        ),
        Query(f"sum({rate('cluster_jobs_finished_total', *HERE, FAILED)}) / {ended}"),
        "percentunit",
        ((0.05, AMBER), (0.2, RED)),
        no_value="no attempts",
    )
    yield number(
        Words(
            "Late in the last hour",
            "Share of jobs that started more than 30 s after they were due; the objective is 1 %. From the recording rules.",
            "the objective of the month is used up in two days: see below why jobs wait.",
        ),
        Query("max(" + _of_rules("job_type:cluster_jobs_late:ratio_rate1h") + ")"),
        "percentunit",
        ((0.01, AMBER), (0.144, RED)),
        no_value="no rules, or no starts",
    )
    yield number(
        Words(
            "Longest wait",
            "For how long the oldest job that may begin has waited.",
            "its limit is full, it or its queue is paused, all slots are busy, or no node serves it: the overview says which.",
        ),
        Query(f"max({whole('cluster_oldest_ready_job_age_seconds', *HERE)})"),
        "s",
        ((60, AMBER), (300, RED)),
    )
    yield number(
        Words(
            "Paused",
            "Types among the chosen ones that operators have paused.",
            "`cluster status` names the reason; `cluster resume NAME` ends it.",
        ),
        Query(f"sum({whole('cluster_job_type_paused', OF_TYPE)})"),
        "none",
        ((1, RED),),
    )
    yield number(
        Words(
            "Held back",
            "What nodes have set aside of this type: its table, or rows of it.",
            "`cluster status` says what Postgres said, and on how many rows.",
        ),
        Query(f"count({of_cluster('cluster_trouble', OF_TYPE)}) or vector(0)"),
        "none",
        ((1, RED),),
    )


def _rate() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words(
            "Attempts by outcome",
            "How many end a second, and how.",
            "failed, timed_out and crashed attempts: see the row Errors.",
        ),
        [Query(f"sum by (outcome) ({rate('cluster_jobs_finished_total', *HERE)})", "{{outcome}}")],
        "ops",
        (),
        stacked=True,
        colors=OUTCOMES,
    )
    yield lines(
        Words(
            "Claimed and ended",
            "Jobs that nodes take a second, by queue, and attempts that end. The two are alike, or jobs pile up in the nodes.",
            "more than 10,000 a second: Postgres is the limit then; see the dashboard Postgres.",
        ),
        [
            Query(f"sum by (queue) ({rate('cluster_jobs_claimed_total', *HERE)})", "claimed, {{queue}}"),
            Query(f"sum by (queue) ({rate('cluster_jobs_finished_total', *HERE)})", "ended, {{queue}}"),
        ],
        "ops",
        ((10_000, RED),),
    )


def _waits() -> Iterator[Builder[Panel] | Row]:
    yield heat(
        Words(
            "Wait",
            "From due to started: how many jobs waited for how long.",
            "what lies above 30 s is late. A band that climbs: more comes than is performed.",
        ),
        Query(buckets("cluster_job_wait_seconds", *HERE)),
        ((30, RED),),
    )
    waits = "cluster_job_wait_seconds"
    yield lines(
        Words(
            "Wait, half and 99 % of jobs",
            "From due to started.",
            "jobs start late: the overview says why jobs of this type wait.",
        ),
        [
            Query(quantile(0.5, waits, *HERE), "half"),
            Query(quantile(0.99, waits, *HERE), "99 %"),
        ],
        "s",
        ((5, AMBER), (30, RED)),
    )
    by_status = "sum by (status) (" + whole("cluster_jobs", *HERE) + ")"
    yield lines(
        Words(
            "Jobs by status",
            "That wait or run. Counts end at 10,000: so many there are at least.",
            "thousands wait: more comes than is performed.",
        ),
        [Query(by_status, "{{status}}")],
        "short",
        ((5000, RED),),
    )
    yield lines(
        Words(
            "Limit in use",
            "How many run, and how many may at once in the whole cluster. Only types with a limit for all their jobs.",
            "as many run as may. If jobs wait and what the limit protects can bear more, raise max_concurrency_override.",
        ),
        [
            Query(f"sum by (job_type) ({whole('cluster_concurrency_in_use', OF_TYPE)})", "{{job_type}} runs"),
            Query(f"sum by (job_type) ({whole('cluster_concurrency_limit', OF_TYPE)})", "{{job_type}} limit"),
        ],
        "none",
        (),
        colors={"/ limit$/": RED},
    )


def _runs() -> Iterator[Builder[Panel] | Row]:
    runs = "cluster_job_run_seconds"
    yield heat(
        Words(
            "Run",
            "Of one attempt: how many took how long.",
            "what lies above 5 min outlasts a drain of 25 s: raise CLUSTER_SHUTDOWN_TIMEOUT, or make smaller jobs.",
        ),
        Query(buckets(runs, *HERE)),
        ((300, RED),),
    )
    yield lines(
        Words(
            "Slowest types",
            "99 % of the attempts are shorter.",
            "an attempt of more than 5 min outlasts a drain; if it was shorter before, look at what it calls.",
        ),
        [Query(quantile(0.99, runs, *HERE, by="job_type, queue, "), "{{job_type}}, {{queue}}")],
        "s",
        ((60, AMBER), (300, RED)),
    )
    seconds = f"sum by (job_type) ({rate(runs + '_sum', *HERE)})"
    yield lines(
        Words(
            "Slots in use by type",
            "Seconds of running in each second: so many slots a type takes on average.",
            "more than 500 slots: is that type meant to take so many?",
        ),
        [Query(seconds, "{{job_type}}")],
        "none",
        ((500, RED),),
        stacked=True,
    )
    yield lines(
        Words(
            "Mean run by outcome",
            "Mean seconds of an attempt.",
            "failures that take as long as a timeout: what it calls does not answer.",
        ),
        [
            Query(
                f"sum by (outcome) ({rate(runs + '_sum', *HERE)}) / sum by (outcome) ({rate(runs + '_count', *HERE)})",
                "{{outcome}}",
            )
        ],
        "s",
        ((300, RED),),
        colors=OUTCOMES,
    )


def _errors() -> Iterator[Builder[Panel] | Row]:
    failed = f"sum by (job_type, outcome) ({rate('cluster_jobs_finished_total', *HERE, FAILED)})"
    yield lines(
        Words(
            "Failures by type",
            "Attempts that fail a second: for good, to be tried again (retry), too long (timed_out), with their process (crashed).",
            "SELECT last_error, count(*) FROM the table WHERE status IN ('retry', 'failed') GROUP BY 1 ORDER BY 2 DESC LIMIT 5.",
        ),
        [Query(failed, "{{job_type}}, {{outcome}}")],
        "ops",
        ((1, RED),),
    )
    retrying = "sum by (job_type) (" + whole("cluster_jobs", *HERE, 'status="retry"') + ")"
    yield lines(
        Words(
            "Waiting for another attempt",
            "Jobs in status retry, whose backoff runs.",
            "thousands fail again and again: pause the type until the cause is gone, or their attempts are used up.",
        ),
        [Query(retrying, "{{job_type}}")],
        "short",
        ((1000, RED),),
    )
    given_back = [
        Query(f"sum({rate(f'cluster_jobs_{name}_total', OF_TYPE)})", text)
        for name, text in (
            ("released", "released: given back, uncounted"),
            ("rescued", "rescued: of lost nodes"),
            ("set_aside", "set aside: the row refuses"),
        )
    ]
    yield lines(
        Words(
            "Given back, rescued, set aside",
            "Jobs that did not end where they were claimed.",
            "nodes drain or die, or a trigger or constraint refuses rows: see the dashboard Nodes, and `cluster status`.",
        ),
        [
            *given_back,
            Query(f"sum({rate('cluster_claims_lost_total', OF_TYPE)})", "lost: outcomes refused"),
        ],
        "ops",
        ((1, RED),),
    )
    yield lines(
        Words(
            "Held back, by reason",
            "1 while nodes hold a table or rows of it back.",
            "`cluster status` says what Postgres said; docs/operations.md has what to do for each reason.",
        ),
        [Query(f"max by (job_type, reason) ({of_cluster('cluster_trouble', OF_TYPE)})", "{{job_type}}, {{reason}}")],
        "none",
        ((1, RED),),
    )


def _of_rules(record: str) -> str:
    return f"{record}{{{OF_CLUSTER}, {OF_TYPE}}}"
