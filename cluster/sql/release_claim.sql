-- running -> not_started, for one claim whose answer never reached its node: nobody performs it, so the attempt is not counted.
-- Guarded by node and time of the claim. Index: primary key.
UPDATE {table} SET status = 'not_started', attempts_count = attempts_count - 1, locked_at = NULL, updated_at = now()
WHERE id = %(id)s AND status = 'running' AND locked_by = %(node)s AND locked_at = %(locked_at)s
