-- running -> succeeded for jobs of a type with a limit, and not_started -> running for as many others at most: while the limit is
-- full, this is how its places pass on. As many rows run after it as before, at every instant, so it needs no lock and no count;
-- that the limit holds is checked only for the case that it was lowered.
-- Finishes like finish_succeeded_jobs, claims like claim_limited_jobs: guards, order of locks and indexes are theirs.
-- not_started -> failed, for rows that are too large for a node.
-- Returns the claimed rows, each with the number of finished ones behind it; one row without an id, if none was claimed.
-- Runs twice: the second finishes nothing, so it claims nothing. Dies before COMMIT: nothing happened.
WITH outcome AS (
    SELECT * FROM unnest(%(id)s::bigint[], %(locked_at)s::timestamptz[], %(begun)s::float8[]) AS o (id, locked_at, begun)
), held AS MATERIALIZED (
    SELECT id, status, locked_by FROM {table} WHERE id = ANY (%(id)s::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), finished AS (
    UPDATE {table} AS job SET
        status = 'succeeded',
        started_at = job.locked_at + make_interval(secs => o.begun),
        finished_at = now(),
        locked_at = NULL,
        updated_at = now()
    FROM outcome AS o
    WHERE job.id = ANY (ARRAY(SELECT id FROM held WHERE status = 'running' AND locked_by = %(node)s))
      AND o.id = job.id AND job.locked_at = o.locked_at
    RETURNING job.id
), freed AS MATERIALIZED (
    SELECT count(*) AS places FROM finished
), node AS MATERIALIZED (
    SELECT id FROM cluster.nodes WHERE id = %(node)s AND state = 'live' FOR KEY SHARE
), picked AS MATERIALIZED (
    SELECT id, priority, run_at, attempts_count, crashes_count{bytes} FROM {table}
    WHERE status = 'not_started' AND {queue_is} AND priority <= %(priority)s AND id <> ALL (%(set_aside)s)
      AND (priority, run_at, id) >= (%(from_priority)s, coalesce(%(from_run_at)s::timestamptz, '-infinity'), %(from_id)s)
      AND EXISTS (SELECT FROM node)
      AND EXISTS (SELECT FROM cluster.job_types WHERE job_table = %(table)s AND paused_at IS NULL AND concurrency_key IS NULL
                  AND coalesce(max_concurrency_override, max_concurrency) >= %(limit)s)
    ORDER BY priority, run_at, id
    LIMIT least(%(demand)s, (SELECT places FROM freed))
    FOR NO KEY UPDATE SKIP LOCKED
), placed AS (
    SELECT id, attempts_count, crashes_count, row_number() OVER best AS place,
           count(*) FILTER (WHERE crashes_count > 0) OVER best AS crashed{bytes_upto}
    FROM picked WINDOW best AS (ORDER BY priority, run_at, id ROWS UNBOUNDED PRECEDING)
){too_large}, claimed AS (
    UPDATE {table} SET
        status = 'running', attempts_count = attempts_count + 1, locked_at = now(), locked_by = %(node)s,
        started_at = now(), finished_at = NULL, updated_at = now()
    WHERE id = ANY (ARRAY(
        SELECT id FROM placed WHERE (place <= %(slots)s OR attempts_count + 1 < %(max_attempts)s)
           AND (crashes_count = 0 OR crashed <= %(whole)s){bytes_fit}
    ))
    RETURNING id, attempts_count, crashes_count, locked_at, date_part('epoch', now() - run_at) AS wait, queue, priority, run_at,
        created_at, scheduled_for,
    CASE WHEN schedule IS NOT NULL THEN (SELECT time_zone FROM cluster.schedules AS s WHERE s.name = schedule) END AS zone{columns}
)
SELECT claimed.*, freed.places FROM freed LEFT JOIN claimed ON true
