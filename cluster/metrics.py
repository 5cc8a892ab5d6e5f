"""Every Prometheus object of a node, under the names that dashboards rely on. `events` feeds them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, Info

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

wait_seconds = Histogram("cluster_job_wait_seconds", "From due to started", ["job_type", "queue"], buckets=SECONDS)
run_seconds = Histogram("cluster_job_run_seconds", "Of one attempt", ["job_type", "queue", "outcome"], buckets=SECONDS)
claim_seconds = Histogram("cluster_claim_seconds", "Round trip of one claim", buckets=DATABASE_SECONDS)
finish_seconds = Histogram("cluster_finish_seconds", "Round trip of one batch of outcomes", buckets=DATABASE_SECONDS)
claim_batch = Histogram(
    "cluster_claim_batch_jobs",
    "Jobs taken by one claim",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000),
)

slots = Gauge("cluster_slots", "Jobs this node can perform at once", ["state"])
heartbeat_age = Gauge("cluster_heartbeat_age_seconds", "Since this node last renewed its lease")
build = Info("cluster_build", "Version of this node")
