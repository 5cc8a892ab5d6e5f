-- scheduled, retry -> not_started, for rows that are due. Rows that another node is promoting are skipped.
-- due_from: see look_from_bounds; NULL: from the start.
-- Runs twice: the second finds nothing due. Index: _due.
UPDATE {table} SET status = 'not_started', updated_at = now()
WHERE id = ANY (ARRAY(
    SELECT id FROM {table} WHERE status IN ('scheduled', 'retry') AND run_at >= coalesce(%(due_from)s::timestamptz, '-infinity') AND run_at <= now()
    ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
))
