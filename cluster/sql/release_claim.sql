-- running -> not_started, or retry a second later, or failed for a reason when nothing else is let in, or cancelled when that was asked
-- for: for one claim whose answer never reached its node. Nobody performs it, so the attempt is not counted.
-- how: 'now', 'later' or 'failed', with the reason; what is failed so has a row in cluster.failures.
-- Guarded by node and time of the claim, like finish_jobs; waits for whoever holds the row. Index: primary key, which a plan
-- that sees the guards would leave for _running. Runs twice: the second hits nothing. Dies before COMMIT: it is found again.
WITH held AS MATERIALIZED (
    SELECT id, status, locked_by, locked_at FROM {table} WHERE id = %(id)s FOR NO KEY UPDATE
)
UPDATE {table} AS job SET
    status = (CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled' WHEN %(how)s::text = 'now' THEN 'not_started'
                   WHEN %(how)s::text = 'later' THEN 'retry' ELSE 'failed' END)::cluster.job_status,
    run_at = CASE WHEN %(how)s::text = 'later' THEN now() + interval '1 second' ELSE run_at END,
    last_error = coalesce(%(reason)s::text, last_error),
    finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR %(how)s::text = 'failed' THEN now() END,
    attempts_count = attempts_count - 1, locked_at = NULL, updated_at = now()
WHERE id = ANY (ARRAY(SELECT id FROM held WHERE status = 'running' AND locked_by = %(node)s AND locked_at = %(locked_at)s))
RETURNING CASE WHEN status::text = 'failed' THEN cluster.note_failures(
    job.tableoid, ARRAY[id], ARRAY[attempts_count + 1], ARRAY[locked_by], ARRAY['refused'], ARRAY[%(fingerprint)s::text], ARRAY[last_error]) END
