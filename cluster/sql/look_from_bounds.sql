-- look_for_jobs while that is slow, since a held snapshot keeps the entries of rows long claimed: only the queues and priorities given, each
-- from its bound on (run_at NULL: from the start; queue NULL: all but "default"), and due rows from theirs on. What has appeared behind a
-- bound is not seen, nor are running jobs counted; hence a look without bounds every now and then, see coordinator/bounds.py.
-- Indexes: _claim, _others, _queue, _due.
WITH job_type AS MATERIALIZED (
    SELECT coalesce(max_concurrency_override, max_concurrency) AS most
    FROM cluster.job_types WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key IS NULL
), paused AS MATERIALIZED (
    SELECT coalesce(array_agg(name), '{{}}') AS names FROM cluster.queues WHERE paused_at IS NOT NULL
), bound AS MATERIALIZED (
    SELECT * FROM unnest(%(queue)s::text[], %(priority)s::smallint[], %(run_at)s::timestamptz[], %(id)s::bigint[])
        AS bound (queue, priority, run_at, id)
    WHERE EXISTS (SELECT FROM job_type) AND (queue IS NULL OR queue <> ALL ((SELECT names FROM paused)::text[]))
)
SELECT bound.queue, head.priority, head.run_at, head.id, NULL AS foreign_version,
       NULL::float8 AS due_in, NULL::integer AS most, NULL::bigint AS running, NULL::timestamptz AS settled, NULL::float8 AS took
FROM bound, LATERAL (
    SELECT priority, run_at, id FROM {table}
    WHERE status = 'not_started' AND queue = 'default' AND priority = bound.priority AND id <> ALL (%(set_aside)s)
      AND (run_at, id) >= (coalesce(bound.run_at, '-infinity'), bound.id)
    ORDER BY run_at, id LIMIT 1
) AS head
WHERE bound.queue = 'default'
UNION ALL
SELECT bound.queue, head.priority, head.run_at, head.id, NULL, NULL, NULL, NULL, NULL, NULL
FROM bound, LATERAL (
    SELECT priority, run_at, id FROM {table}
    WHERE status = 'not_started' AND queue <> 'default' AND queue = bound.queue AND priority = bound.priority
      AND id <> ALL (%(set_aside)s) AND (run_at, id) >= (coalesce(bound.run_at, '-infinity'), bound.id)
    ORDER BY run_at, id LIMIT 1
) AS head
WHERE bound.queue <> 'default'
UNION ALL
SELECT bound.queue, head.priority, head.run_at, head.id, NULL, NULL, NULL, NULL, NULL, NULL
FROM bound, LATERAL (
    SELECT priority, run_at, id FROM {table}
    WHERE status = 'not_started' AND (queue < 'default' OR queue > 'default') AND priority = bound.priority
      AND id <> ALL (%(set_aside)s) AND CASE WHEN queue = ANY ((SELECT names FROM paused)::text[]) THEN false ELSE true END
      AND (run_at, id) >= (coalesce(bound.run_at, '-infinity'), bound.id)
    ORDER BY run_at, id LIMIT 1
) AS head
WHERE bound.queue IS NULL
UNION ALL
SELECT NULL, NULL, due.run_at, NULL, NULL, extract(epoch FROM due.run_at - clock_timestamp())::float8, job_type.most,
       NULL, now() - interval '1 second', extract(epoch FROM clock_timestamp() - statement_timestamp())::float8
FROM (SELECT (
    SELECT run_at FROM {table} WHERE status IN ('scheduled', 'retry') AND run_at >= coalesce(%(due_from)s::timestamptz, '-infinity')
      AND id <> ALL (%(due_aside)s)
    ORDER BY run_at LIMIT 1
)) AS due (run_at)
LEFT JOIN job_type ON true
