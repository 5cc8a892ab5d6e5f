-- One window of a walk along the primary key: how far it got (NULL: the end), the finished rows in it that are kept no longer, and when
-- the first of the others expires (NULL: none ever does). A walk needs no index that every finish would have to write.
-- Reads only. Index: primary key.
WITH seen AS MATERIALIZED (
    SELECT id, status, finished_at FROM {table} WHERE id > %(after)s ORDER BY id LIMIT %(window)s
), judged AS MATERIALIZED (
    SELECT id, finished_at + CASE WHEN status = 'succeeded' THEN %(retention)s::interval
                                  WHEN status IN ('failed', 'timed_out', 'cancelled') THEN %(retention_failed)s::interval END AS expires_at
    FROM seen
)
SELECT (SELECT CASE WHEN count(*) = %(window)s THEN max(id) END FROM seen),
       coalesce(array_agg(id ORDER BY id) FILTER (WHERE expires_at < now()), '{{}}'),
       min(expires_at) FILTER (WHERE expires_at >= now())
FROM judged
