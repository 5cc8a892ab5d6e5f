-- The rows that a promotion would take next, unlocked: to find the one that makes the whole statement fail. Index: _due.
SELECT id FROM {table}
WHERE status IN ('scheduled', 'retry') AND run_at <= now() AND id <> ALL (%(set_aside)s)
ORDER BY run_at LIMIT %(limit)s
