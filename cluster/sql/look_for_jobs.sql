-- Where work waits in one job table: the row at the head of each queue that this node serves; a node that serves all goes through
-- "default" and, as one (queue NULL), through all others, whatever their number. Then the heads of at most 100 queues that are not
-- its own, with a version that changes with that row. And at last one row with the run_at of the next row that is due and in how many
-- seconds that is (NULL: none is), the limit and how many jobs run (NULL: no limit, or one for each value of its key), the time before
-- which every transaction is taken to have ended, and the seconds that this look took.
-- A plain look, without locks or SKIP LOCKED: a row that another transaction holds still counts as there.
-- queues: this node's; NULL: all. set_aside, due_aside: rows that refuse to be claimed, or promoted.
-- key: the class's concurrency_key; while the table has another, its rows are not for this node, and its claim indexes are others.
-- Indexes: _claim, _others, _queue (those beginning with _open for a table with a key), _due, _running.
WITH RECURSIVE job_type AS MATERIALIZED (
    SELECT CASE WHEN concurrency_key IS NULL THEN coalesce(max_concurrency_override, max_concurrency) END AS most
    FROM cluster.job_types
    WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key IS NOT DISTINCT FROM %(key)s::text
      AND (concurrency_key IS NULL OR coalesce(max_concurrency_override, 1) > 0)
), paused AS MATERIALIZED (
    SELECT coalesce(array_agg(name), '{{}}') AS names FROM cluster.queues WHERE paused_at IS NOT NULL
), foreign_queue AS (
    (SELECT queue, id, xmin FROM {table}
     WHERE status = 'not_started' AND queue <> 'default'{open} AND %(queues)s::text[] IS NOT NULL AND EXISTS (SELECT FROM job_type)
     ORDER BY queue, priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM foreign_queue, LATERAL (
        SELECT queue, id, xmin FROM {table}
        WHERE status = 'not_started' AND queue <> 'default'{open} AND queue > foreign_queue.queue
        ORDER BY queue, priority, run_at, id LIMIT 1
    ) AS next
)
(SELECT queue, priority, run_at, id, CASE WHEN 'default' <> ALL (%(queues)s::text[]) THEN id || ' ' || xmin END AS foreign_version,
       NULL::float8 AS due_in, NULL::integer AS most, NULL::bigint AS running, NULL::timestamptz AS settled, NULL::float8 AS took
FROM {table}
WHERE status = 'not_started' AND queue = 'default'{open} AND id <> ALL (%(set_aside)s)
  AND EXISTS (SELECT FROM job_type) AND 'default' <> ALL ((SELECT names FROM paused)::text[])
ORDER BY priority, run_at, id LIMIT 1)
UNION ALL
(SELECT NULL, priority, run_at, id, NULL, NULL, NULL, NULL, NULL, NULL FROM {table}
WHERE status = 'not_started' AND (queue < 'default' OR queue > 'default'){open} AND id <> ALL (%(set_aside)s)
  AND %(queues)s::text[] IS NULL AND EXISTS (SELECT FROM job_type)
  AND CASE WHEN queue = ANY ((SELECT names FROM paused)::text[]) THEN false ELSE true END
ORDER BY priority, run_at, id LIMIT 1)
UNION ALL
SELECT own.queue, head.priority, head.run_at, head.id, NULL, NULL, NULL, NULL, NULL, NULL
FROM unnest(%(queues)s::text[]) AS own (queue), LATERAL (
    SELECT priority, run_at, id FROM {table}
    WHERE status = 'not_started' AND queue <> 'default'{open} AND queue = own.queue AND id <> ALL (%(set_aside)s)
    ORDER BY priority, run_at, id LIMIT 1
) AS head
WHERE EXISTS (SELECT FROM job_type) AND own.queue <> ALL ((SELECT names FROM paused)::text[])
UNION ALL
SELECT queue, NULL, NULL, id, id || ' ' || xmin, NULL, NULL, NULL, NULL, NULL FROM (SELECT * FROM foreign_queue LIMIT 100) AS found
WHERE queue <> ALL (%(queues)s::text[]) AND queue <> ALL ((SELECT names FROM paused)::text[])
UNION ALL
SELECT NULL, NULL, due.run_at, NULL, NULL, extract(epoch FROM due.run_at - clock_timestamp())::float8, job_type.most,
       CASE WHEN job_type.most IS NOT NULL THEN (SELECT count(*) FROM {table} WHERE status = 'running') END,
       now() - interval '1 second', extract(epoch FROM clock_timestamp() - statement_timestamp())::float8
FROM (SELECT (
    SELECT run_at FROM {table} WHERE status IN ('scheduled', 'retry') AND id <> ALL (%(due_aside)s) ORDER BY run_at LIMIT 1
)) AS due (run_at)
LEFT JOIN job_type ON true
