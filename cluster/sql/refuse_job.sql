-- not_started -> failed, for one row that nobody can claim because a trigger or constraint refuses the claim.
UPDATE {table} SET status = 'failed', last_error = %(error)s, finished_at = now(), updated_at = now()
WHERE id = %(id)s AND status = 'not_started'
