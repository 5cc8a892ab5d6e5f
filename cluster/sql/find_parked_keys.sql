-- Parked rows by key and queue, and whether the key has room: the next so many pairs after the one given (NULL: from the start).
-- A claim looks after the keys of the jobs that its own node ends; this finds the room that others leave: a node that died or
-- drains, a rescue, user SQL, a raised limit.
-- Indexes: _parked (loose scan over key and queue), _running_key.
WITH RECURSIVE job_type AS MATERIALIZED (
    SELECT coalesce(max_concurrency_override, max_concurrency, 2147483647) AS most FROM cluster.job_types
    WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key = %(key)s
), pair AS (
    SELECT * FROM (
        (SELECT {key} AS key, queue FROM {table} WHERE parked AND %(queue)s::text IS NULL ORDER BY {key}, queue LIMIT 1)
        UNION ALL
        (SELECT {key}, queue FROM {table} WHERE parked AND ({key}, queue) > (%(after)s::text::{key_type}, %(queue)s::text)
         ORDER BY {key}, queue LIMIT 1)
    ) AS first
    UNION ALL
    SELECT next.key, next.queue FROM pair, LATERAL (
        SELECT {key} AS key, queue FROM {table} WHERE parked AND ({key}, queue) > (pair.key, pair.queue)
        ORDER BY {key}, queue LIMIT 1
    ) AS next
)
SELECT pair.queue, pair.key::text, most > (SELECT count(*) FROM {table} WHERE status = 'running' AND {key} = pair.key)
FROM (SELECT * FROM pair LIMIT %(limit)s) AS pair, job_type
