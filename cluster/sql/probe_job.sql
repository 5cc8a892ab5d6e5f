-- The claim's update of one row, to be rolled back: does a trigger or constraint refuse it?
UPDATE {table} SET
    status = 'running', attempts_count = attempts_count + 1, locked_at = now(), locked_by = %(node)s,
    started_at = now(), finished_at = NULL, updated_at = now()
WHERE id = %(id)s AND status = 'not_started'
