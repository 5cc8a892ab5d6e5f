-- running -> retry, due now (its trigger makes it not_started), or failed when its attempts are used up, or cancelled when
-- that was asked for: for rows whose node is neither live nor draining. The attempt counts, begun or not.
-- A row is visible as running only once its claim has committed, and with it its node's row; a node that is being closed
-- waits for its open claims first. Runs twice, or on many nodes at once: a row that another has locked is skipped.
-- Index: _running, whose order the LIMIT follows, whatever the statistics say. No lock is waited for, so their order is free.
UPDATE {table} SET
    status = (CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                   WHEN attempts_count >= greatest(1, %(max_attempts)s) THEN 'failed' ELSE 'retry' END)::cluster.job_status,
    run_at = now(),
    last_error = 'its node ' || locked_by || ' was lost; this attempt may not have begun',
    finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR attempts_count >= greatest(1, %(max_attempts)s) THEN now() END,
    locked_at = NULL,
    updated_at = now()
WHERE id = ANY (ARRAY(
    SELECT job.id FROM {table} AS job
    WHERE job.status = 'running' AND NOT EXISTS (
        SELECT FROM cluster.nodes AS node WHERE node.id = job.locked_by AND node.state IN ('live', 'draining'))
    ORDER BY job.locked_by LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
))
