-- look_for_jobs while that is slow, since a held snapshot keeps the entries of rows long claimed: only the queues and priorities given, each
-- from its bound on (run_at NULL: from the start), and due rows from theirs on. What has appeared behind a bound is not seen, nor are running
-- jobs counted; hence a look without bounds every now and then, see coordinator/bounds.py.
-- Indexes: _claim, _due.
WITH job_type AS MATERIALIZED (
    SELECT coalesce(max_concurrency_override, max_concurrency) AS most
    FROM cluster.job_types WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key IS NULL
)
SELECT bound.queue, head.priority, head.run_at, head.id, head.id || ' ' || head.xmin AS version,
       NULL::float8 AS due_in, NULL::integer AS most, NULL::bigint AS running, NULL::timestamptz AS settled, NULL::float8 AS took
FROM unnest(%(queue)s::text[], %(priority)s::smallint[], %(run_at)s::timestamptz[], %(id)s::bigint[]) AS bound (queue, priority, run_at, id),
LATERAL (
    SELECT priority, run_at, id, xmin FROM {table}
    WHERE status = 'not_started' AND queue = bound.queue AND priority = bound.priority
      AND (run_at, id) >= (coalesce(bound.run_at, '-infinity'), bound.id)
    ORDER BY run_at, id LIMIT 1
) AS head
WHERE EXISTS (SELECT FROM job_type) AND NOT EXISTS (SELECT FROM cluster.queues WHERE name = bound.queue AND paused_at IS NOT NULL)
UNION ALL
SELECT NULL, NULL, due.run_at, NULL, NULL, extract(epoch FROM due.run_at - clock_timestamp())::float8, job_type.most,
       NULL, now() - interval '1 second', extract(epoch FROM clock_timestamp() - statement_timestamp())::float8
FROM (SELECT (
    SELECT run_at FROM {table} WHERE status IN ('scheduled', 'retry') AND run_at >= coalesce(%(due_from)s::timestamptz, '-infinity')
    ORDER BY run_at LIMIT 1
)) AS due (run_at)
LEFT JOIN job_type ON true
