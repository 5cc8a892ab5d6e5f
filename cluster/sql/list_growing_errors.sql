-- Errors that come more often than before: failed attempts of the last ten minutes, ten at least, by fingerprint, beside those of the hour before,
-- if these were fewer than three times as many: in the same time half as many. Of the newest 5,000 at most. With the newest error.
-- Reads only. Indexes: failures_at; failures_group, see list_error_groups.
WITH recent AS MATERIALIZED (
    SELECT fingerprint AS g, count(*) AS attempts FROM (
        SELECT fingerprint FROM cluster.failures WHERE at >= now() - interval '10 minutes' ORDER BY at DESC LIMIT 5000
    ) AS found GROUP BY fingerprint HAVING count(*) >= 10 ORDER BY attempts DESC LIMIT 5
), compared AS MATERIALIZED (
    SELECT g, attempts, (
        SELECT count(*) FILTER (WHERE found.at < now() - interval '10 minutes') FROM (
            SELECT f.at FROM cluster.failures AS f
            WHERE (f.fingerprint, f.at) >= (g, now() - interval '70 minutes') AND f.fingerprint <= g
            ORDER BY f.fingerprint, f.at LIMIT 15000) AS found
    ) AS before
    FROM recent
)
SELECT g AS fingerprint, attempts, before, newest.outcome, right(newest.error, 2000) AS error
FROM compared, LATERAL (
    SELECT f.outcome, f.error FROM cluster.failures AS f WHERE (f.fingerprint, f.at) <= (g, 'infinity') AND f.fingerprint >= g
    ORDER BY f.fingerprint DESC, f.at DESC LIMIT 1
) AS newest
WHERE before < 3 * attempts ORDER BY attempts DESC
