"""SQL of the dashboard that needs no Prometheus. Plain SELECTs, for a role that may read schema `cluster` and the job tables.

Grafana's macros: $__timeFilter, $__timeGroupAlias, $__interval.
"""

from __future__ import annotations

NEWEST = 20_000
"""Rows of the chosen table that its panels read, so that they cost the same however many it has."""


def of_every_table(query: str, columns: str) -> str:
    """The rows of a query of each job table, %1$s in it, beside its name. columns: with their types; 2,000 bytes a row.

    The one function that runs text as SQL in a plain SELECT, on every server, is ts_stat. It is one of text search, but a word
    may be any text, so each row is one, as JSON. (query_to_xml needs a server with libxml, a function of our own a migration.)
    OFFSET keeps tables that were dropped out before any is read.
    """
    rows_as_words = (
        f"SELECT array_to_tsvector(coalesce(array_agg(to_json(found)::text), '{{}}')) FROM ({query}) AS found"
    )
    literal = "'" + rows_as_words.replace("'", "''") + "'"
    return f"""\
SELECT t.name AS job_type, found.*
FROM (SELECT name, job_table FROM cluster.job_types WHERE EXISTS (SELECT FROM pg_class WHERE oid = job_table) OFFSET 0) AS t,
     ts_stat(format({literal}, t.job_table)) AS stat,
     json_to_record(stat.word::json) AS found ({columns})"""


_UNFINISHED = " UNION ALL ".join(
    f"(SELECT queue, status, run_at FROM %1$s WHERE {condition} LIMIT 10000)"
    for condition in (
        "status = 'not_started' AND queue = 'default'",
        "status = 'not_started' AND queue <> 'default'",
        "status IN ('scheduled', 'retry')",
        "status = 'running'",
    )
)
COUNTS = of_every_table(
    "SELECT left(queue, 200) AS queue, status, count(*) AS jobs,"
    " extract(epoch FROM now() - min(run_at) FILTER (WHERE run_at <= now())) AS age"
    f" FROM ({_UNFINISHED}) AS unfinished GROUP BY 1, 2",
    "queue text, status text, jobs bigint, age float8",
)
"""Of what waits and runs, by type, queue and status. age: seconds for which the oldest that is due has waited."""

_LIVE = "state IN ('live', 'draining') AND lease_until >= now()"
TROUBLE = f"""\
SELECT entry.job_type, entry.reason, max(entry.rows) AS rows, count(*) AS nodes, to_timestamp(min(entry.since)) AS since,
       min(entry.detail) AS detail
FROM cluster.nodes AS node,
     jsonb_to_recordset(node.trouble) AS entry (job_type text, reason text, rows bigint, since float8, detail text)
WHERE {_LIVE}
GROUP BY entry.job_type, entry.reason ORDER BY since"""
_OLDEST = """\
SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)"""

WHY = f"""\
WITH counted AS (
{COUNTS}
), served AS (
    SELECT j AS job_type, q AS queue FROM cluster.nodes, unnest(jobs) AS j, unnest(queues) AS q
    WHERE state = 'live' AND lease_until >= now()
), trouble AS (
{TROUBLE}
), summed AS (
    SELECT t.name AS job_type, t.paused_at IS NOT NULL AS paused,
           CASE WHEN t.concurrency_key IS NULL THEN coalesce(t.max_concurrency_override, t.max_concurrency) END AS max,
           coalesce(max(c.age) FILTER (WHERE c.status = 'not_started'), 0) AS age,
           coalesce(sum(c.jobs) FILTER (WHERE c.status = 'not_started'), 0) AS ready,
           coalesce(sum(c.jobs) FILTER (WHERE c.status = 'running'), 0) AS running,
           coalesce(sum(c.jobs) FILTER (WHERE c.status = 'retry'), 0) AS retry,
           coalesce(sum(c.jobs) FILTER (WHERE c.status = 'scheduled'), 0) AS scheduled,
           coalesce(sum(c.jobs) FILTER (WHERE c.status <> 'running' AND NOT EXISTS (
               SELECT FROM served AS s WHERE s.job_type = t.name AND s.queue IN ('*', c.queue))), 0) AS unserved,
           coalesce(bool_or(c.status = 'not_started' AND c.queue IN (
               SELECT name FROM cluster.queues WHERE paused_at IS NOT NULL)), false) AS queue_paused
    FROM cluster.job_types AS t LEFT JOIN counted AS c ON c.job_type = t.name GROUP BY t.name
)
SELECT job_type,
       CASE WHEN job_type IN (SELECT job_type FROM trouble) THEN 7
            WHEN unserved > 0 THEN 6
            WHEN paused THEN 5
            WHEN queue_paused THEN 4
            WHEN ready > 0 AND running >= max THEN 3
            WHEN ready > 0 AND (SELECT sum(slots - running) FROM cluster.nodes WHERE {_LIVE}) <= 0 THEN 2
            WHEN ready > 0 THEN 1 ELSE 0 END AS why,
       age AS "longest wait", ready AS "not started", running, max AS "limit", retry, scheduled, unserved AS "nobody serves"
FROM summed ORDER BY why DESC, age DESC"""
"""The ranks are those of `advice.WHY`."""

WORST = f"""\
WITH why AS (
{WHY}
)
SELECT greatest(
    CASE WHEN NOT EXISTS (SELECT FROM cluster.nodes WHERE state = 'live' AND lease_until >= now()) THEN 10 ELSE 0 END,
    (SELECT max(CASE why WHEN 7 THEN 7 WHEN 6 THEN 6 WHEN 5 THEN 1 WHEN 4 THEN 1
                         ELSE CASE WHEN "longest wait" > 300 THEN 4 ELSE 0 END END) FROM why),
    CASE WHEN ({_OLDEST}) > 1800 THEN 3 ELSE 0 END,
    CASE WHEN EXISTS (SELECT FROM cluster.nodes WHERE state IN ('live', 'draining') AND lease_until < now()
                      OR state = 'lost' AND heartbeat_at > now() - interval '15 minutes') THEN 2 ELSE 0 END
) AS worst"""
"""The ranks are those of `advice.WORST`."""

BY_STATUS = f"SELECT job_type, queue, status, jobs, age FROM (\n{COUNTS}\n) AS counted ORDER BY jobs DESC"
LIVE_NODES = "SELECT count(*) AS nodes FROM cluster.nodes WHERE state = 'live' AND lease_until >= now()"
FREE_SLOTS = f"SELECT coalesce(sum(greatest(slots - running, 0)), 0) AS slots FROM cluster.nodes WHERE {_LIVE}"
LONGEST_WAIT = f"SELECT coalesce(max(age), 0) AS seconds FROM (\n{COUNTS}\n) AS counted WHERE status = 'not_started'"
OLDEST_TRANSACTION = f"SELECT coalesce(({_OLDEST}), 0) AS seconds"
NODES = """\
SELECT hostname, pid, version,
       CASE WHEN state IN ('live', 'draining') AND lease_until < now() THEN 'silent' ELSE state END AS state,
       running AS busy, slots, extract(epoch FROM now() - heartbeat_at) AS heartbeat,
       extract(epoch FROM now() - started_at) AS "up for",
       array_to_string(queues, ', ') AS queues
FROM cluster.nodes ORDER BY state = 'stopped', hostname, pid LIMIT 200"""
TABLES = """\
SELECT t.name AS job_type, s.n_live_tup AS rows, s.n_dead_tup AS dead, pg_total_relation_size(t.job_table) AS size,
       greatest(s.last_vacuum, s.last_autovacuum) AS "last vacuum"
FROM cluster.job_types AS t JOIN pg_stat_user_tables AS s ON s.relid = t.job_table ORDER BY size DESC"""
TRANSACTIONS = """\
SELECT pid, usename AS role, application_name AS application, state, extract(epoch FROM now() - xact_start) AS age,
       left(query, 200) AS query
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 10"""

# --- of the chosen table ---

_RECENT = f"(SELECT * FROM ${{job_table:raw}} ORDER BY id DESC LIMIT {NEWEST}) AS recent"
OUTCOMES = f"""\
SELECT $__timeGroupAlias(finished_at, $__interval), status::text AS metric, count(*) AS jobs
FROM {_RECENT} WHERE $__timeFilter(finished_at) GROUP BY 1, 2 ORDER BY 1, 2"""
WAITS = f"""\
SELECT $__timeGroupAlias(started_at, $__interval),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY greatest(0, extract(epoch FROM started_at - run_at))) AS half,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY greatest(0, extract(epoch FROM started_at - run_at))) AS "99 %"
FROM {_RECENT} WHERE $__timeFilter(started_at) GROUP BY 1 ORDER BY 1"""
RUNS = f"""\
SELECT $__timeGroupAlias(finished_at, $__interval),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)) AS half,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)) AS "99 %"
FROM {_RECENT} WHERE started_at IS NOT NULL AND $__timeFilter(finished_at) GROUP BY 1 ORDER BY 1"""
SLOWEST = f"""\
SELECT id, queue, status::text AS status, attempts_count AS attempts, extract(epoch FROM finished_at - started_at) AS seconds,
       finished_at
FROM {_RECENT} WHERE started_at IS NOT NULL AND $__timeFilter(finished_at) ORDER BY seconds DESC LIMIT 20"""
ERRORS = f"""\
SELECT left(regexp_replace(rtrim(last_error), '^.*\\n', ''), 200) AS error, status::text AS status, count(*) AS jobs,
       max(id) AS "last id", max(updated_at) AS "last seen"
FROM {_RECENT} WHERE last_error IS NOT NULL AND $__timeFilter(updated_at) GROUP BY 1, 2 ORDER BY jobs DESC LIMIT 20"""
ATTEMPTS = f"""\
SELECT attempts_count AS attempts, status::text AS status, count(*) AS jobs
FROM {_RECENT} WHERE $__timeFilter(updated_at) GROUP BY 1, 2 ORDER BY 1, 2"""
