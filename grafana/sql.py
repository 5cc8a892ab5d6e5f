"""The most important panels without Prometheus: the data source is the database itself."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from grafana import sql_queries
from grafana.advice import WHY, WORST
from grafana.frame import fill, on_postgres, single
from grafana.panels import AMBER, GREEN, OUTCOMES, RED, Column, Query, Words, lines, number, row, rows, sentence

TABLES = "SELECT job_table::text AS __value, name AS __text FROM cluster.job_types ORDER BY name"
STATES = {
    "live": ("live", GREEN),
    "draining": ("draining", AMBER),
    "silent": ("silent", RED),
    "lost": ("lost", RED),
    "stopped": ("stopped", "transparent"),
}
RECENT = f"Of the newest {sql_queries.NEWEST:,} rows of the chosen table."


def dashboard() -> Dashboard:
    """jobcluster-sql."""
    frame = on_postgres(
        "sql",
        "SQL",
        "Without Prometheus: what the database itself knows. The role reads schema cluster and the job tables.",
        [single("job_table", "Job table", TABLES)],
    )
    parts = (*_health(), row("What waits, and why"), *_waiting(), row("Nodes and Postgres"), *_servers())
    return fill(frame, *parts, row("The chosen job table"), *_chosen())


def _sql(text: str) -> Query:
    return Query(text, sql=True)


def _health() -> Iterator[Builder[Panel] | Row]:
    yield sentence(
        Words(
            "What to do first",
            "The worst of what is wrong now, and what to do about it.",
            "do what it says; docs/runbooks.md says more.",
        ),
        _sql(sql_queries.WORST),
        WORST,
    )
    yield number(
        Words(
            "Live nodes", "Nodes that hold a lease.", "start nodes; their first lines of log say why they do not stay."
        ),
        _sql(sql_queries.LIVE_NODES),
        "none",
        ((None, RED), (1, GREEN)),
        width=6,
    )
    yield number(
        Words(
            "Free slots",
            "Jobs that could begin at once, as of the last heartbeats.",
            "all slots are busy: if jobs wait, add nodes.",
        ),
        _sql(sql_queries.FREE_SLOTS),
        "none",
        ((None, RED), (1, GREEN)),
        width=6,
    )
    yield number(
        Words(
            "Longest wait",
            "For how long the oldest job that may begin has waited, among the first 10,000 of a queue.",
            "the table below says why.",
        ),
        _sql(sql_queries.LONGEST_WAIT),
        "s",
        ((60, AMBER), (300, RED)),
        width=6,
    )
    yield number(
        Words(
            "Oldest transaction",
            "Age of the oldest transaction. What it may see, vacuum must keep.",
            "end it: pg_terminate_backend(pid), with the pid of the table below.",
        ),
        _sql(sql_queries.OLDEST_TRANSACTION),
        "s",
        ((300, AMBER), (1800, RED)),
        width=6,
    )


def _waiting() -> Iterator[Builder[Panel] | Row]:
    waits = Column(unit="s", steps=((60, AMBER), (300, RED)))
    yield rows(
        Words(
            "Why jobs wait",
            "One row for each job type. Counts of a queue end at 10,000: so many there are at least.",
            "do what stands under `why`.",
        ),
        [_sql(sql_queries.WHY)],
        {
            "job_type": Column(width=220),
            "why": Column(texts=WHY, width=520),
            "longest wait": waits,
            "nobody serves": Column(steps=((1, RED),)),
        },
    )
    yield rows(
        Words(
            "By queue and status", "What waits and runs.", "the longest wait is over 5 min: see why in the table above."
        ),
        [_sql(sql_queries.BY_STATUS)],
        {"age": waits},
        width=12,
    )
    yield rows(
        Words(
            "Held back",
            "What nodes have set aside: tables, or rows. Empty: nothing.",
            "detail is what Postgres said; docs/operations.md has what to do for each reason.",
        ),
        [_sql(sql_queries.TROUBLE)],
        {"reason": Column(steps=((None, RED),)), "since": Column(unit="dateTimeFromNow")},
        width=12,
        no_value="Nothing is held back",
    )


def _servers() -> Iterator[Builder[Panel] | Row]:
    yield rows(
        Words(
            "Nodes",
            "As they said with their last heartbeat.",
            "silent: look at its host; others take its jobs. lost: find out why.",
        ),
        [_sql(sql_queries.NODES)],
        {
            "state": Column(texts=STATES),
            "heartbeat": Column(unit="s"),
            "up for": Column(unit="s"),
        },
    )
    yield rows(
        Words(
            "Job tables",
            "Rows as the statistics have it; size with indexes.",
            "dead: VACUUM (VERBOSE) says what holds it back. Size: set retention, or delete finished rows.",
        ),
        [_sql(sql_queries.TABLES)],
        {
            "rows": Column(unit="short"),
            "dead": Column(unit="short", steps=((100_000, AMBER), (1_000_000, RED))),
            "size": Column(unit="bytes", steps=((20 * 2**30, AMBER), (100 * 2**30, RED))),
            "last vacuum": Column(unit="dateTimeFromNow"),
        },
        width=12,
    )
    yield rows(
        Words(
            "Open transactions",
            "The ten oldest. Without pg_read_all_stats: those of the own role only.",
            "it is older than 30 min: end it, SELECT pg_terminate_backend(pid).",
        ),
        [_sql(sql_queries.TRANSACTIONS)],
        {"age": Column(unit="s", steps=((300, AMBER), (1800, RED)))},
        width=12,
        no_value="No transaction is open",
    )


def _chosen() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words("Finished jobs", RECENT, "failed and timed_out: see the table of errors."),
        [_sql(sql_queries.OUTCOMES)],
        "short",
        (),
        stacked=True,
        colors=OUTCOMES,
    )
    yield lines(
        Words(
            "Wait", f"From due to the start of the last attempt. {RECENT}", "jobs start late: see above why they wait."
        ),
        [_sql(sql_queries.WAITS)],
        "s",
        ((5, AMBER), (30, RED)),
    )
    yield lines(
        Words(
            "Run",
            f"Of the last attempt. {RECENT}",
            "an attempt of more than 5 min outlasts a drain; if it was shorter before, look at what it calls.",
        ),
        [_sql(sql_queries.RUNS)],
        "s",
        ((60, AMBER), (300, RED)),
    )
    yield rows(
        Words("Slowest", f"The last attempts that took longest. {RECENT}", "longer than 5 min: it outlasts a drain."),
        [_sql(sql_queries.SLOWEST)],
        {"seconds": Column(unit="s", steps=((60, AMBER), (300, RED)))},
        width=12,
    )
    yield rows(
        Words(
            "Errors",
            f"The last line of last_error, and how many jobs have it. {RECENT}",
            "a hundred jobs have the same error: if what they call is down, pause the type; else deploy, then `cluster retry`.",
        ),
        [_sql(sql_queries.ERRORS)],
        {"error": Column(width=480), "jobs": Column(steps=((10, AMBER), (100, RED)))},
        width=16,
    )
    yield rows(
        Words(
            "Attempts",
            f"How many jobs have had how many attempts. {RECENT}",
            "five attempts and more: read the errors beside.",
        ),
        [_sql(sql_queries.ATTEMPTS)],
        {"attempts": Column(steps=((2, AMBER), (5, RED)))},
        width=8,
    )
