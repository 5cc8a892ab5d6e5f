-- The first occurrence of schedules that are new, or were changed, activated or resumed: cron is computed by nodes. One with an error
-- is deactivated. Guarded by revision: who changed it meanwhile rings again. Lock order: by name. Runs twice: the second changes nothing.
WITH planned AS (
    SELECT p.*, s.name AS found FROM jsonb_to_recordset(%(plans)s) AS p (name text, revision bigint, next_due_at timestamptz,
                                                                      next_run_at timestamptz, error text)
    JOIN cluster.schedules AS s ON s.name = p.name
    WHERE s.revision = p.revision AND (s.plan_from IS NOT NULL OR p.error IS NOT NULL) ORDER BY s.name FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE cluster.schedules AS s SET
    plan_from = NULL, next_due_at = p.next_due_at, next_run_at = p.next_run_at,
    state = CASE WHEN p.error IS NULL THEN s.state ELSE 'deactivated' END,
    last_error = coalesce(p.error, s.last_error)
FROM planned AS p WHERE s.name = p.name
RETURNING s.name, p.error
