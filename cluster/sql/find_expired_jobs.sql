-- One window of a walk along the primary key: how far it got (NULL: the end), the finished rows in it that are kept longer than
-- retention says, and when the oldest of the others that will expire some day has finished. A walk needs no index that every finish
-- would have to write.
WITH seen AS MATERIALIZED (
    SELECT id, status, finished_at FROM {table} WHERE id > %(after)s ORDER BY id LIMIT %(window)s
), judged AS MATERIALIZED (
    SELECT id, finished_at, CASE WHEN status = 'succeeded' THEN %(retention)s::interval
                                 WHEN status IN ('failed', 'timed_out', 'cancelled') THEN %(retention_failed)s::interval END AS kept
    FROM seen
)
SELECT (SELECT CASE WHEN count(*) = %(window)s THEN max(id) END FROM seen),
       coalesce(array_agg(id) FILTER (WHERE finished_at < now() - kept), '{{}}'),
       min(finished_at) FILTER (WHERE finished_at >= now() - kept)
FROM judged
