-- not_started -> running, for a type with a limit: as claim_jobs, but no more rows than the limit leaves room for.
-- Runs as a statement of its own after take_turn in the same READ COMMITTED transaction, so that its snapshot is younger
-- than the lock and counts every row that an earlier holder claimed. Without the lock it takes nothing.
-- not_started -> failed, for rows that are too large for a node.
-- Indexes: _claim, _others or _queue; _running.
WITH node AS MATERIALIZED (
    SELECT id FROM cluster.nodes WHERE id = %(node)s AND state = 'live' FOR KEY SHARE
), room AS MATERIALIZED (
    SELECT coalesce(max_concurrency_override, max_concurrency)
           - (SELECT count(*) FROM {table} WHERE status = 'running') AS room
    FROM cluster.job_types
    WHERE current_setting('cluster.claim') = 'true' AND job_table = %(table)s AND paused_at IS NULL
      AND concurrency_key IS NULL
), picked AS MATERIALIZED (
    SELECT id, priority, run_at, attempts_count, crashes_count{bytes} FROM {table}
    WHERE status = 'not_started' AND {queue_is} AND priority <= %(priority)s AND id <> ALL (%(set_aside)s)
      AND CASE WHEN %(only)s::bigint[] IS NULL THEN true ELSE id = ANY (%(only)s::bigint[]) END
      AND (priority, run_at, id) >= (%(from_priority)s, coalesce(%(from_run_at)s::timestamptz, '-infinity'), %(from_id)s)
      AND EXISTS (SELECT FROM node)
    ORDER BY priority, run_at, id
    LIMIT greatest(0, least(%(demand)s, (SELECT room FROM room)::bigint))
        * (EXISTS (SELECT FROM room))::integer
    FOR NO KEY UPDATE SKIP LOCKED
), placed AS (
    SELECT id, attempts_count, crashes_count, row_number() OVER best AS place,
           count(*) FILTER (WHERE crashes_count > 0) OVER best AS crashed{bytes_upto}
    FROM picked WINDOW best AS (ORDER BY priority, run_at, id ROWS UNBOUNDED PRECEDING)
){too_large}
UPDATE {table} SET
    status = 'running', attempts_count = attempts_count + 1, locked_at = now(), locked_by = %(node)s,
    started_at = now(), finished_at = NULL, updated_at = now()
WHERE id = ANY (ARRAY(
    SELECT id FROM placed WHERE (place <= %(slots)s OR attempts_count + 1 < %(max_attempts)s)
       AND (crashes_count = 0 OR crashed <= %(whole)s){bytes_fit}
))
RETURNING id, attempts_count, crashes_count, locked_at, date_part('epoch', now() - run_at), queue, priority, run_at, created_at, scheduled_for,
    CASE WHEN schedule IS NOT NULL THEN (SELECT time_zone FROM cluster.schedules AS s WHERE s.name = schedule) END AS zone{columns}
