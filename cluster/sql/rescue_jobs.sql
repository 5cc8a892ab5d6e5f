-- running -> retry, due now (its trigger makes it not_started) or in a second, or failed when its attempts or crashes are used up or
-- nothing else is let in, or cancelled when that was asked for: for rows that list_orphans has found. The attempt counts, begun or not.
-- dead: nodes that are gone for good, by id. A row that another node has rescued meanwhile, and a third has claimed, has another node
-- by now: the row's new version is compared with that list, not with what this statement's snapshot says of the nodes.
-- crashed: those of them that were lost with a single job, which then counts as a crash: see count_lost_jobs.
-- how: 'now', 'later' or 'failed', with the reason. Runs twice, or on many nodes at once: a row that another has locked is skipped.
-- What is not cancelled gets a row in cluster.failures.
-- Dies before COMMIT: nothing happened. Index: primary key. No lock is waited for, so their order is free.
WITH held AS MATERIALIZED (
    SELECT id, status, locked_by FROM {table} WHERE id = ANY (%(id)s::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
), found AS MATERIALIZED (
    SELECT id, (locked_by = ANY (%(crashed)s::uuid[]))::integer AS crash FROM held
    WHERE status = 'running' AND (locked_by IS NULL OR locked_by = ANY (%(dead)s::uuid[]))
), rescued AS (
    UPDATE {table} AS job SET
        status = (CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                       WHEN %(how)s::text = 'failed' OR attempts_count >= greatest(1, %(max_attempts)s)
                            OR found.crash = 1 AND crashes_count + 1 >= %(max_crashes)s THEN 'failed'
                       ELSE 'retry' END)::cluster.job_status,
        run_at = CASE WHEN %(how)s::text = 'later' THEN now() + interval '1 second' ELSE now() END,
        last_error = CASE
            WHEN %(how)s::text = 'failed' THEN %(reason)s::text
            WHEN found.crash = 1 AND crashes_count + 1 >= %(max_crashes)s
                THEN 'its node ' || locked_by || ' was lost with this job alone; ' || crashes_count + 1 || ' crashes, so it is not tried again'
            ELSE coalesce('its node ' || locked_by, 'its node, nobody knows which,') || ' was lost; this attempt may not have begun' END,
        crashes_count = crashes_count + found.crash,
        finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR %(how)s::text = 'failed' OR attempts_count >= greatest(1, %(max_attempts)s)
                                OR found.crash = 1 AND crashes_count + 1 >= %(max_crashes)s THEN now() END,
        locked_at = NULL,
        updated_at = now()
    FROM found
    WHERE job.id = ANY (ARRAY(SELECT id FROM found)) AND found.id = job.id
    RETURNING job.tableoid AS job_table, job.id, job.status, job.attempts_count, job.locked_by, job.last_error
)
SELECT id, (
    SELECT cluster.note_failures(min(job_table), array_agg(id), array_agg(attempts_count), array_agg(locked_by),
                                 array_agg('lost'::text), array_agg('lost_node'::text), array_agg(last_error))
    FROM rescued WHERE status::text <> 'cancelled' HAVING count(*) > 0
) FROM rescued
