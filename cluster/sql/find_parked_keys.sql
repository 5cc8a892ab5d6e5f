-- Keys that have parked rows, as text, and whether each has room: the next so many after the one given (NULL: from the start).
-- A claim looks after the keys of the jobs that its own node ends; this finds the room that others leave: a node that died or
-- drains, a rescue, user SQL, a raised limit.
-- Indexes: _parked (loose scan over the key), _running_key.
WITH RECURSIVE job_type AS MATERIALIZED (
    SELECT coalesce(max_concurrency_override, max_concurrency, 2147483647) AS most FROM cluster.job_types
    WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key = %(key)s
), parked AS (
    SELECT * FROM (
        (SELECT {key} AS key FROM {table} WHERE parked AND %(after)s::text IS NULL ORDER BY {key} LIMIT 1)
        UNION ALL
        (SELECT {key} FROM {table} WHERE parked AND {key} > %(after)s::text::{key_type} ORDER BY {key} LIMIT 1)
    ) AS first
    UNION ALL
    SELECT next.key FROM parked, LATERAL (
        SELECT {key} AS key FROM {table} WHERE parked AND {key} > parked.key ORDER BY {key} LIMIT 1
    ) AS next
)
SELECT parked.key::text, most > (SELECT count(*) FROM {table} WHERE status = 'running' AND {key} = parked.key)
FROM (SELECT * FROM parked LIMIT %(limit)s) AS parked, job_type
