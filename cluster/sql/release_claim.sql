-- running -> not_started, or cancelled when that was asked for: for one claim whose answer never reached its node. Nobody
-- performs it, so the attempt is not counted.
-- Guarded by node and time of the claim, like finish_jobs; waits for whoever holds the row. Index: primary key, which a plan
-- that sees the guards would leave for _running.
WITH held AS MATERIALIZED (
    SELECT id, status, locked_by, locked_at FROM {table} WHERE id = %(id)s FOR NO KEY UPDATE
)
UPDATE {table} SET
    status = (CASE WHEN cancel_requested_at IS NULL THEN 'not_started' ELSE 'cancelled' END)::cluster.job_status,
    finished_at = CASE WHEN cancel_requested_at IS NOT NULL THEN now() END,
    attempts_count = attempts_count - 1, locked_at = NULL, updated_at = now()
WHERE id = ANY (ARRAY(SELECT id FROM held WHERE status = 'running' AND locked_by = %(node)s AND locked_at = %(locked_at)s))
