-- The rows that a claim would try next, unlocked: to find the one that makes the whole claim fail. Index: _claim or _open.
SELECT id FROM {table}
WHERE status = 'not_started'{open} AND queue = %(queue)s AND id <> ALL (%(set_aside)s)
ORDER BY priority, run_at, id LIMIT %(demand)s
