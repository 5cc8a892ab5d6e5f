-- Failed attempts of the last while, by fingerprint, those with the most first: how many (at most %(most)s are counted), how many in the last five
-- minutes, first and last ever seen, the trend (counts in %(buckets)s equal parts of the time, each to a tenth of the bound), how many of the newest
-- 1,000 are of which job table, by oid, and the newest error with its outcome. only: one fingerprint; NULL: all. groups: so many at most.
-- Reads only. Index: failures_group, from fingerprint to fingerprint, however many rows each has; so it is bounded on any table. Pairs are
-- compared and sorted by, since the planner would take failures_at for `fingerprint = … ORDER BY at`, and read all of it for a rare one.
-- A part of the trend is cut at its end after the scan: before Postgres 17 a second pair would not end the scan.
WITH RECURSIVE kind AS (
    SELECT coalesce(%(only)s::text, (SELECT fingerprint FROM cluster.failures ORDER BY fingerprint, at LIMIT 1)) AS fingerprint
    UNION ALL
    SELECT (SELECT f.fingerprint FROM cluster.failures AS f WHERE f.fingerprint > kind.fingerprint ORDER BY f.fingerprint, f.at LIMIT 1)
    FROM kind WHERE %(only)s::text IS NULL AND kind.fingerprint IS NOT NULL
), latest AS MATERIALIZED (
    SELECT fingerprint AS g, (
        SELECT f.at FROM cluster.failures AS f
        WHERE (f.fingerprint, f.at) <= (kind.fingerprint, 'infinity') AND f.fingerprint >= kind.fingerprint
        ORDER BY f.fingerprint DESC, f.at DESC LIMIT 1
    ) AS last_at FROM kind
), counted AS MATERIALIZED (
    SELECT g, last_at, (
        SELECT count(*) FROM (
            SELECT FROM cluster.failures AS f WHERE (f.fingerprint, f.at) >= (g, now() - %(since)s::interval) AND f.fingerprint <= g
            ORDER BY f.fingerprint, f.at LIMIT %(most)s) AS found
    ) AS attempts
    FROM latest WHERE last_at >= now() - %(since)s::interval ORDER BY attempts DESC, last_at DESC, g LIMIT %(groups)s
)
SELECT g AS fingerprint, attempts, (
        SELECT count(*) FROM (
            SELECT FROM cluster.failures AS f WHERE (f.fingerprint, f.at) >= (g, now() - interval '5 minutes') AND f.fingerprint <= g
            ORDER BY f.fingerprint, f.at LIMIT %(most)s) AS found
    ) AS recent, (
        SELECT f.at FROM cluster.failures AS f WHERE (f.fingerprint, f.at) >= (g, '-infinity') AND f.fingerprint <= g
        ORDER BY f.fingerprint, f.at LIMIT 1
    ) AS first_at, last_at,
    ARRAY(
        SELECT (SELECT count(*) FILTER (WHERE found.at < part.ends) FROM (
            SELECT f.at FROM cluster.failures AS f WHERE (f.fingerprint, f.at) >= (g, part.begins) AND f.fingerprint <= g
            ORDER BY f.fingerprint, f.at LIMIT %(most)s / 10) AS found)
        FROM (
            SELECT n, now() - %(since)s::interval * ((n + 1)::float8 / %(buckets)s) AS begins,
                   CASE WHEN n = 0 THEN 'infinity' ELSE now() - %(since)s::interval * (n::float8 / %(buckets)s) END AS ends
            FROM generate_series(%(buckets)s::integer - 1, 0, -1) AS n
        ) AS part ORDER BY n DESC
    ) AS trend, (
        SELECT jsonb_object_agg(oid, jobs) FROM (
            SELECT found.job_table::oid AS oid, count(*) AS jobs FROM (
                SELECT f.job_table FROM cluster.failures AS f
                WHERE (f.fingerprint, f.at) <= (g, 'infinity') AND (f.fingerprint, f.at) >= (g, now() - %(since)s::interval)
                ORDER BY f.fingerprint DESC, f.at DESC LIMIT 1000) AS found
            GROUP BY 1) AS of_table
    ) AS tables, newest.outcome, newest.error
FROM counted, LATERAL (
    SELECT f.outcome, f.error FROM cluster.failures AS f WHERE (f.fingerprint, f.at) <= (g, 'infinity') AND f.fingerprint >= g
    ORDER BY f.fingerprint DESC, f.at DESC LIMIT 1
) AS newest
ORDER BY attempts DESC, last_at DESC, g
