-- Where work waits in one job table: for each queue the row at its head, with a version that changes with that row. And one row without a queue:
-- the run_at of the next row that is due and in how many seconds that is (NULL: none is), the limit and how many jobs run (NULL: no limit, or
-- one for each value of its key), the time before which every transaction is taken to have ended, and the seconds that this look took.
-- A plain look, without locks or SKIP LOCKED: a row that another transaction holds still counts as there.
-- key: the class's concurrency_key; while the table has another, its rows are not for this node, and its claim index is another.
-- Indexes: _claim or _open (from head to head), _due, _running.
WITH RECURSIVE job_type AS MATERIALIZED (
    SELECT CASE WHEN concurrency_key IS NULL THEN coalesce(max_concurrency_override, max_concurrency) END AS most
    FROM cluster.job_types
    WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key IS NOT DISTINCT FROM %(key)s::text
      AND (concurrency_key IS NULL OR coalesce(max_concurrency_override, 1) > 0)
), head AS (
    (SELECT queue, priority, run_at, id, xmin FROM {table} WHERE status = 'not_started'{open} AND EXISTS (SELECT FROM job_type)
     ORDER BY queue, priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM head, LATERAL (
        SELECT queue, priority, run_at, id, xmin FROM {table} WHERE status = 'not_started'{open} AND queue > head.queue
        ORDER BY queue, priority, run_at, id LIMIT 1
    ) AS next
)
SELECT queue, priority, run_at, id, id || ' ' || xmin AS version,
       NULL::float8 AS due_in, NULL::integer AS most, NULL::bigint AS running, NULL::timestamptz AS settled, NULL::float8 AS took
FROM head
WHERE NOT EXISTS (SELECT FROM cluster.queues WHERE name = head.queue AND paused_at IS NOT NULL)
UNION ALL
SELECT NULL, NULL, due.run_at, NULL, NULL, extract(epoch FROM due.run_at - clock_timestamp())::float8, job_type.most,
       CASE WHEN job_type.most IS NOT NULL THEN (SELECT count(*) FROM {table} WHERE status = 'running') END,
       now() - interval '1 second', extract(epoch FROM clock_timestamp() - statement_timestamp())::float8
FROM (SELECT (SELECT run_at FROM {table} WHERE status IN ('scheduled', 'retry') ORDER BY run_at LIMIT 1)) AS due (run_at)
LEFT JOIN job_type ON true
