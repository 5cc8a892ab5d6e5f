-- not_started -> failed, for one row that nobody can claim because a trigger or constraint refuses the claim. A failed attempt, though it
-- never began: it has a row in cluster.failures.
UPDATE {table} AS job SET status = 'failed', last_error = %(error)s, finished_at = now(), updated_at = now()
WHERE id = %(id)s AND status = 'not_started'
RETURNING cluster.note_failures(job.tableoid, ARRAY[id], ARRAY[attempts_count + 1], ARRAY[NULL::uuid], ARRAY['refused'],
                                ARRAY[%(fingerprint)s::text], ARRAY[last_error])
