-- scheduled, retry -> not_started, for rows that are due. Rows that another node is promoting are skipped.
-- due_from: see look_from_bounds; NULL: from the start. set_aside: rows that refuse it. only: rows to choose from, NULL: all.
-- Runs twice: the second finds nothing due. Index: _due.
UPDATE {table} SET status = 'not_started', updated_at = now()
WHERE id = ANY (ARRAY(
    SELECT id FROM {table}
    WHERE status IN ('scheduled', 'retry') AND run_at >= coalesce(%(due_from)s::timestamptz, '-infinity') AND run_at <= now()
      AND id <> ALL (%(set_aside)s) AND CASE WHEN %(only)s::bigint[] IS NULL THEN true ELSE id = ANY (%(only)s::bigint[]) END
    ORDER BY run_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
))
