-- How many jobs of one table wait and run, by queue and status, and for how many seconds the oldest that is ready has waited (NULL: none
-- is ready). A queue may come twice. What has finished is not counted, so that the cost does not grow with it. No count goes beyond `most`:
-- so many are there at least. Of many queues in which jobs may begin each is counted only to the bound that is in every row, at least 100.
-- The oldest are found by going from priority to priority, since the indexes have no other order: 1,000 steps at most.
-- Indexes: _claim, _queue (_open, _open_queue and _parked for a table with a key), _due, _running.
WITH RECURSIVE of_default AS (
    (SELECT priority, run_at FROM {table} WHERE status = 'not_started' AND queue = 'default'{open} ORDER BY priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM of_default, LATERAL (
        SELECT priority, run_at FROM {table}
        WHERE status = 'not_started' AND queue = 'default'{open} AND priority > of_default.priority
        ORDER BY priority, run_at, id LIMIT 1
    ) AS next
), of_others AS (
    (SELECT queue, priority, run_at FROM {table} WHERE status = 'not_started' AND queue <> 'default'{open}
     ORDER BY queue, priority, run_at, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM of_others, LATERAL (
        SELECT queue, priority, run_at FROM {table}
        WHERE status = 'not_started' AND queue <> 'default'{open} AND (queue, priority) > (of_others.queue, of_others.priority)
        ORDER BY queue, priority, run_at, id LIMIT 1
    ) AS next
), other AS (
    SELECT queue, min(run_at) AS run_at FROM (SELECT * FROM of_others LIMIT 1000) AS found GROUP BY queue
), bound AS MATERIALIZED (
    SELECT greatest(100, %(most)s::bigint / (1 + count(*))) AS jobs FROM other
), counted AS (
    SELECT 'default' AS queue, 'not_started' AS status, extract(epoch FROM now() - (SELECT min(run_at) FROM of_default))::float8 AS age,
           (SELECT count(*) FROM (
               SELECT FROM {table} WHERE status = 'not_started' AND queue = 'default'{open}
               ORDER BY priority, run_at, id LIMIT (SELECT jobs FROM bound)
           ) AS found) AS jobs
    UNION ALL
    SELECT other.queue, 'not_started', extract(epoch FROM now() - other.run_at)::float8, (SELECT count(*) FROM (
               SELECT FROM {table} WHERE status = 'not_started' AND queue <> 'default'{open} AND queue = other.queue
               ORDER BY queue, priority, run_at, id LIMIT (SELECT jobs FROM bound)
           ) AS found)
    FROM other{parked}
    UNION ALL
    SELECT queue, status::text, extract(epoch FROM now() - min(run_at) FILTER (WHERE run_at <= now()))::float8, count(*)
    FROM (SELECT queue, status, run_at FROM {table} WHERE status IN ('scheduled', 'retry') ORDER BY run_at LIMIT %(most)s) AS found
    GROUP BY queue, status
    UNION ALL
    SELECT queue, 'running', NULL, count(*)
    FROM (SELECT queue FROM {table} WHERE status = 'running' ORDER BY locked_by LIMIT %(most)s) AS found GROUP BY queue
)
SELECT counted.*, bound.jobs FROM counted, bound
