-- The rows that a claim would try next, unlocked: to find the one that makes the whole claim fail.
-- Index: _claim, _others or _queue, or those of open rows.
SELECT id FROM {table}
WHERE status = 'not_started'{open} AND {queue_is} AND id <> ALL (%(set_aside)s)
ORDER BY priority, run_at, id LIMIT %(demand)s
