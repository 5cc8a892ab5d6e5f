"""What to do first: the sentences of the overview, of its table of reasons, and of each alert, by the alerts' conditions."""

from __future__ import annotations

from grafana.panels import AMBER, BLUE, GREEN, RED
from grafana.promql import FAILED, UNEXPECTED_EXITS, of_cluster, ranked, whole

WORST = {
    "0": ("All is well", GREEN),
    "1": ("Something is paused: see below what, and resume it when its reason is gone", BLUE),
    "2": ("A node was lost; others take its jobs. Find out why: memory, eviction, network?", AMBER),
    "3": ("A transaction is older than 30 min: end it, or claims get slower (dashboard Postgres)", AMBER),
    "4": ("Jobs wait for more than 5 min: see below why, then add nodes or raise the limit", RED),
    "5": ("More than a fifth of the attempts of a type fail: open it below, read last_error", RED),
    "6": ("Jobs wait that no live node serves: deploy their class, or set CLUSTER_QUEUES", RED),
    "7": ("Nodes hold a table or rows back: `cluster status` says what Postgres said", RED),
    "8": ("Worker processes die: look for `worker_ended` in the log, pause the type behind it", RED),
    "9": ("Nodes can't renew their leases: repair Postgres, or the way to it", RED),
    "10": ("No node is live: start nodes. If they run, Prometheus can't reach them", RED),
}
"""By rank: the worst that holds is shown. The SQL dashboard has the same ranks."""


def _failing() -> str:
    failed, all_of_them = (
        f"sum by (job_type) (increase({of_cluster('cluster_jobs_finished_total', *matchers)}[15m]))"
        for matchers in ((FAILED,), ())
    )
    return f"max(({failed} / {all_of_them} > bool 0.2) * ({all_of_them} >= bool 20))"


def worst() -> str:
    """PromQL: the rank of the worst that holds. Needs no rules."""
    live, silent, lost = (f'state="{state}"' for state in ("live", "silent", "lost"))
    nodes = "cluster_nodes"
    lost_before = f"max without (instance, pod) ({of_cluster(nodes, lost)} offset 15m)"
    oldest = (
        f"{whole('cluster_oldest_ready_job_age_seconds')}"
        f" unless on (job_type) ({whole('cluster_job_type_paused')} == 1) unless on (queue) {whole('cluster_queue_paused')}"
    )
    conditions = ranked(
        (10, f"max(absent({of_cluster(nodes, live)}) or ({whole(nodes, live)} < bool 1))"),
        (9, f"max({of_cluster('cluster_heartbeat_age_seconds')}) > bool 15"),
        (8, f"sum(increase({of_cluster('cluster_worker_exits_total', UNEXPECTED_EXITS)}[15m])) > bool 5"),
        (7, f"max({of_cluster('cluster_trouble')}) > bool 0"),
        (6, f"max({whole('cluster_unroutable_jobs')}) > bool 0"),
        (5, _failing()),
        (4, f"max({oldest}) > bool 300"),
        (3, f"max({whole('cluster_oldest_transaction_seconds')}) > bool 1800"),
        (2, f"max(({whole(nodes, silent)} > bool 0) or ({whole(nodes, lost)} > bool {lost_before}))"),
        (1, f"max({whole('cluster_job_type_paused')} or {whole('cluster_queue_paused')})"),
    )
    return f"max(\n  vector(0)\n  or {conditions}\n)"


WHY = {
    "0": ("nothing waits", GREEN),
    "1": ("being worked off", GREEN),
    "2": ("all slots are busy: add nodes, or CLUSTER_CONCURRENCY", AMBER),
    "3": ("its limit is full: raise max_concurrency_override, if what it protects can bear more", AMBER),
    "4": ("a queue of it is paused: cluster resume --queue", BLUE),
    "5": ("it is paused: cluster resume", BLUE),
    "6": ("no live node serves it: deploy the class, or set CLUSTER_QUEUES", RED),
    "7": ("held back by something wrong: cluster status", RED),
}


def why() -> str:
    """PromQL: for each job type, by rank, why its jobs wait."""
    ready = whole("cluster_jobs", 'status="not_started"')
    waiting = f"sum by (job_type) ({ready})"
    in_use = f"sum by (job_type) ({whole('cluster_concurrency_in_use')})"
    limit = f"sum by (job_type) ({whole('cluster_concurrency_limit')})"
    free = of_cluster("cluster_slots", 'state="free"')
    conditions = ranked(
        (7, f"max by (job_type) ({of_cluster('cluster_trouble')})"),
        (6, f"max by (job_type) ({whole('cluster_unroutable_jobs')}) > bool 0"),
        (5, f"max by (job_type) ({whole('cluster_job_type_paused')})"),
        (4, f"max by (job_type) (({ready} > bool 0) and on (queue) {whole('cluster_queue_paused')})"),
        (3, f"({in_use} >= bool {limit}) * ({waiting} > bool 0)"),
        (2, f"({waiting} > bool 0) and on () (sum({free}) == 0)"),
        (1, f"{waiting} > bool 0"),
    )
    return f"max by (job_type) (\n  {conditions}\n)"


FIRST_STEPS = {
    "ClusterJobsStartLate": "All slots busy? Add nodes. If not: a limit, a pause, or trouble",
    "ClusterBacklogOld": "Resume what is paused, serve the queue, or add nodes",
    "ClusterJobsFail": "Read last_error; pause the type if what it calls is down",
    "ClusterNodeLost": "Its jobs go to others. Find out why: memory, eviction, network",
    "ClusterHasNoNodes": "Start nodes; the first lines of their log say why they do not stay",
    "ClusterJobsUnroutable": "Deploy the class, or set CLUSTER_QUEUES on some node",
    "ClusterLimitFull": "Raise max_concurrency_override, if what it protects can bear more",
    "ClusterClaimsLost": "Somebody writes status, locked_by or locked_at by hand: stop that",
    "ClusterWorkersCrash": "Read worker_ended in the log; pause the type behind it",
    "ClusterOldTransaction": "End it: pg_terminate_backend; set idle_in_transaction_session_timeout",
    "ClusterVacuumHeldBack": "VACUUM the table; look for old slots, prepared and old transactions",
    "ClusterLeaseNotRenewed": "Repair the node's way to Postgres; if all have it, Postgres",
    "ClusterTrouble": "cluster status says what Postgres said, and on how many rows",
    "ClusterSchedulesOverdue": "cluster schedule list: which ones; their jobs fail, wait, or did not come",
    "ClusterScheduleDeactivated": "cluster schedule list: last_error says why; mend it, then activate",
    "ClusterSchedulesLate": "Are nodes up, and is Postgres quick? See cluster_finish_seconds",
}
"""By alert: what its runbook says to do, in one line."""
