-- running -> succeeded, failed, timed_out, cancelled (final), retry, scheduled (snoozed) or not_started (released).
-- One row per outcome: arrays of equal length. Guarded by node and time of the claim, which is new at every claim: a late
-- writer hits no row. Rows that somebody else has locked are skipped, not waited for; the caller looks again.
-- delay: seconds from now to the next attempt, NULL: run_at stays. attempts: 0, or -1 to give the attempt back.
-- begun: seconds from the claim to the start of perform. Lock order: by id. Index: primary key; state and node are looked at
-- only in what it has found, or the planner would take _running, whose dead entries a held snapshot keeps.
-- What would run again is cancelled instead when that was asked for meanwhile, as a rescue does.
-- failure, fingerprint: of an attempt that failed, for cluster.failures; NULL: it did not. Only what was hit gets a row there.
-- Runs twice: the second hits nothing. Dies before COMMIT: the outcome is lost with the node, the job is rescued.
WITH outcome AS (
    SELECT * FROM unnest(
        %(id)s::bigint[], %(locked_at)s::timestamptz[], %(status)s::text[], %(delay)s::float8[], %(error)s::text[],
        %(attempts)s::integer[], %(crashes)s::integer[], %(begun)s::float8[], %(failure)s::text[], %(fingerprint)s::text[]
    ) WITH ORDINALITY AS o (id, locked_at, status, delay, error, attempts, crashes, begun, failure, fingerprint, place)
), held AS MATERIALIZED (
    SELECT id, status, locked_by FROM {table} WHERE id = ANY (%(id)s::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), written AS (
    UPDATE {table} AS job SET
        status = (CASE WHEN job.cancel_requested_at IS NOT NULL AND o.status IN ('retry', 'scheduled', 'not_started')
                       THEN 'cancelled' ELSE o.status END)::cluster.job_status,
        run_at = CASE WHEN o.delay IS NULL THEN job.run_at ELSE now() + make_interval(secs => o.delay) END,
        attempts_count = job.attempts_count + o.attempts,
        crashes_count = job.crashes_count + o.crashes,
        last_error = coalesce(o.error, job.last_error),
        started_at = job.locked_at + make_interval(secs => o.begun),
        finished_at = CASE WHEN job.cancel_requested_at IS NOT NULL OR o.status IN ('succeeded', 'failed', 'timed_out', 'cancelled')
                           THEN now() END,
        locked_at = NULL,
        updated_at = now()
    FROM outcome AS o
    WHERE job.id = ANY (ARRAY(SELECT id FROM held WHERE status = 'running' AND locked_by = %(node)s))
      AND o.id = job.id AND job.locked_at = o.locked_at
    RETURNING o.place{key_text}, job.tableoid AS job_table, job.id, job.attempts_count, job.locked_by, o.failure, o.fingerprint, o.error
)
SELECT place{key_name}, (
    SELECT cluster.note_failures(min(job_table), array_agg(id), array_agg(attempts_count), array_agg(locked_by),
                                 array_agg(failure), array_agg(fingerprint), array_agg(error))
    FROM written WHERE failure IS NOT NULL HAVING count(*) > 0
) FROM written
