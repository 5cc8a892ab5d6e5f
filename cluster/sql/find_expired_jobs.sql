-- One window of a walk along the primary key: how far it got (NULL: the end), and the finished rows in it that are kept
-- longer than retention says. A walk needs no index that every finish would have to write.
WITH seen AS MATERIALIZED (
    SELECT id, status, finished_at FROM {table} WHERE id > %(after)s ORDER BY id LIMIT %(window)s
)
SELECT max(id),
       coalesce(array_agg(id) FILTER (WHERE
           status = 'succeeded' AND finished_at < now() - %(retention)s::interval
           OR status IN ('failed', 'timed_out', 'cancelled') AND finished_at < now() - %(retention_failed)s::interval), '{{}}')
FROM seen
