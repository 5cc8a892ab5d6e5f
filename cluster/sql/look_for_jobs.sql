-- Where work waits in one job table: a row per queue with its best priority, that row's run_at, id and version, and the room under the type's limit (NULL: no
-- limit, or one for each value of its key). And one row without a queue: the limit in place of the room, and in how many seconds the next row is
-- due (NULL: none is).
-- A plain look, without locks or SKIP LOCKED: a row that another transaction holds still counts as there.
-- key: the class's concurrency_key; while the table has another, its rows are not for this node, and its claim index is another.
-- Indexes: _claim or _open (loose scan over queues, then the head of each), _due, _running.
WITH RECURSIVE job_type AS MATERIALIZED (
    SELECT CASE WHEN concurrency_key IS NULL THEN coalesce(max_concurrency_override, max_concurrency) END AS most
    FROM cluster.job_types
    WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key IS NOT DISTINCT FROM %(key)s::text
      AND (concurrency_key IS NULL OR coalesce(max_concurrency_override, 1) > 0)
), waiting AS (
    (SELECT queue FROM {table} WHERE status = 'not_started'{open} AND EXISTS (SELECT FROM job_type) ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT next.queue FROM {table} AS next WHERE next.status = 'not_started'{open} AND next.queue > waiting.queue
            ORDER BY next.queue LIMIT 1)
    FROM waiting WHERE waiting.queue IS NOT NULL
), room AS MATERIALIZED (
    SELECT most - CASE WHEN most IS NOT NULL THEN (SELECT count(*) FROM {table} WHERE status = 'running') END AS room FROM job_type
)
SELECT waiting.queue, head.priority, head.run_at, head.id, head.version, room.room, NULL::float8 AS due_in
FROM waiting, room, LATERAL (
    SELECT priority, run_at, id, id || ' ' || xmin AS version FROM {table} WHERE status = 'not_started'{open} AND queue = waiting.queue ORDER BY priority, run_at, id LIMIT 1
) AS head
WHERE NOT EXISTS (SELECT FROM cluster.queues WHERE name = waiting.queue AND paused_at IS NOT NULL)
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, (SELECT most FROM job_type), extract(epoch FROM (
    SELECT run_at FROM {table} WHERE status IN ('scheduled', 'retry') ORDER BY run_at LIMIT 1
) - clock_timestamp())::float8
