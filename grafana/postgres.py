"""Postgres as the queue sees it: dead rows, the oldest transaction, claims and finishes, the doorbell, sizes of tables."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from grafana.frame import JOB_TYPES, TO_TYPE, fill, on_prometheus
from grafana.panels import AMBER, RED, Column, Query, Words, heat, lines, row, rows
from grafana.promql import OF_TYPE, buckets, of_cluster, quantile, rate, whole

OLDEST = "SELECT pid, state, query, now() - xact_start AS age FROM pg_stat_activity ORDER BY xact_start LIMIT 5"


def dashboard() -> Dashboard:
    """jobcluster-postgres."""
    frame = on_prometheus(
        "postgres",
        "Postgres",
        "The database as the queue sees it: what vacuum can't remove, how long round trips take, how large the tables are.",
        [JOB_TYPES],
    )
    parts = (
        row("What slows claims"),
        *_dead_rows(),
        row("Round trips"),
        *_round_trips(),
        row("The doorbell"),
        *_doorbell(),
    )
    return fill(frame, *parts, row("Tables"), *_tables())


def _of(metric: str) -> str:
    return f"max by (job_type) ({whole(metric, OF_TYPE)})"


def _dead_rows() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words(
            "Oldest transaction",
            "Its age. What it may see, vacuum must keep. Without pg_read_all_stats: of the nodes' own role.",
            f"end it: {OLDEST}; then pg_terminate_backend(pid). Give roles idle_in_transaction_session_timeout.",
        ),
        [Query(f"max({whole('cluster_oldest_transaction_seconds')})", "age")],
        "s",
        ((300, AMBER), (1800, RED)),
    )
    yield lines(
        Words(
            "Dead rows by type",
            "Row versions that vacuum has not removed yet, as the statistics have it. Every attempt leaves two or three.",
            "autovacuum does not keep up, or an old transaction holds it back: VACUUM (VERBOSE) the table says which.",
        ),
        [Query(_of("cluster_table_dead_rows"), "{{job_type}}")],
        "short",
        ((100_000, AMBER), (1_000_000, RED)),
    )


def _round_trips() -> Iterator[Builder[Panel] | Row]:
    yield heat(
        Words(
            "Claims",
            "One round trip that takes jobs.",
            "what lies above 0.1 s is slow: old transactions, dead rows, or a full disk.",
        ),
        Query(buckets("cluster_claim_seconds")),
        ((0.1, RED),),
    )
    yield heat(
        Words(
            "Finishes",
            "One round trip that writes outcomes.",
            "what lies above 0.1 s is slow: the disk of the log (fsync), or a slow trigger.",
        ),
        Query(buckets("cluster_finish_seconds")),
        ((0.1, RED),),
    )
    yield lines(
        Words(
            "Claims and finishes, half and 99 %",
            "Seconds of one round trip, whatever the number of jobs in it.",
            "Postgres is slow or overloaded: see the row above; then pg_stat_activity for what waits, and the disk.",
        ),
        [
            Query(quantile(share, f"cluster_{name}_seconds"), f"{name}, {text}")
            for name in ("claim", "finish")
            for share, text in ((0.5, "half"), (0.99, "99 %"))
        ],
        "s",
        ((0.1, AMBER), (1, RED)),
    )
    yield lines(
        Words(
            "Jobs of one claim",
            "How many a claim takes on average. Many is cheap: the cost of a claim hardly depends on it.",
            "more than 1,000 at once: more CLUSTER_CONCURRENCY than is good, or very short jobs.",
        ),
        [Query(f"sum({rate('cluster_claim_batch_jobs_sum')}) / sum({rate('cluster_claim_batch_jobs_count')})", "jobs")],
        "none",
        ((1000, RED),),
    )


def _doorbell() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words(
            "Rings",
            "Notifications a second that woke a node. Inserts ring only when somebody sleeps, so a busy cluster rings seldom.",
            "more than 1,000 a second: NOTIFY serialises the commits of all that ring. Insert several jobs in one transaction.",
        ),
        [Query(f"sum by (instance) ({rate('cluster_doorbell_rings_total')})", "{{instance}}")],
        "ops",
        ((1000, RED),),
    )
    yield lines(
        Words(
            "Claims a second",
            "Round trips that take jobs, those that find nothing included.",
            "more than 2,000 a second cost the database much: fewer and larger nodes claim more at once.",
        ),
        [Query(f"sum({rate('cluster_claim_seconds_count')})", "claims")],
        "ops",
        ((2000, RED),),
    )


def _tables() -> Iterator[Builder[Panel] | Row]:
    yield rows(
        Words(
            "Job tables",
            "Rows as the statistics have it, and bytes on disk with indexes.",
            "dead: VACUUM (VERBOSE) says what holds it back. Size: set retention and retention_failed, or delete finished rows.",
        ),
        [
            Query(_of("cluster_table_live_rows"), "rows"),
            Query(_of("cluster_table_dead_rows"), "dead"),
            Query(_of("cluster_table_bytes"), "size"),
            Query(f"max by (job_type) (delta({of_cluster('cluster_table_bytes', OF_TYPE)}[1h]))", "grown in 1 h"),
        ],
        {
            "job_type": Column(link=TO_TYPE),
            "rows": Column(unit="short"),
            "dead": Column(unit="short", steps=((100_000, AMBER), (1_000_000, RED))),
            "size": Column(unit="bytes", steps=((20 * 2**30, AMBER), (100 * 2**30, RED))),
            "grown in 1 h": Column(unit="bytes"),
        },
        worst="dead",
        width=12,
    )
    yield lines(
        Words(
            "Size by type",
            "Bytes on disk with indexes.",
            "set retention and retention_failed, or delete finished rows; VACUUM gives the room to new rows, not to the disk.",
        ),
        [Query(_of("cluster_table_bytes"), "{{job_type}}")],
        "bytes",
        ((20 * 2**30, AMBER), (100 * 2**30, RED)),
        stacked=True,
    )
