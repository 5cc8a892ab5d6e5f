-- not_started -> running, for a type without a limit. Takes the best rows of one queue, or of all but "default", or none unless the
-- node is live and neither type nor queue is paused. The node's row is locked first (FOR KEY SHARE), then the jobs in claim order.
-- Beyond the slots that are free, rows are prefetched; never one on its last attempt, since a claim that is lost counts.
-- whole: how many rows that must be performed alone, having crashed before, may be taken. only: rows to choose from, NULL: all.
-- from_*: the row to begin at, while crossing what is before it would be slow; 0, NULL, 0: the best.
-- The array keeps a generic plan on the primary key; a join on picked would hash the whole table.
-- not_started -> failed, for rows that are too large for a node, see statements.py.
-- Index: _claim, _others or _queue. Dies before COMMIT: nothing happened. Dies after: the rows run under a node that will be found lost.
WITH node AS MATERIALIZED (
    SELECT id FROM cluster.nodes WHERE id = %(node)s AND state = 'live' FOR KEY SHARE
), picked AS MATERIALIZED (
    SELECT id, priority, run_at, attempts_count, crashes_count{bytes} FROM {table}
    WHERE status = 'not_started' AND {queue_is} AND priority <= %(priority)s AND id <> ALL (%(set_aside)s)
      AND CASE WHEN %(only)s::bigint[] IS NULL THEN true ELSE id = ANY (%(only)s::bigint[]) END
      AND (priority, run_at, id) >= (%(from_priority)s, coalesce(%(from_run_at)s::timestamptz, '-infinity'), %(from_id)s)
      AND EXISTS (SELECT FROM node)
      AND EXISTS (SELECT FROM cluster.job_types WHERE job_table = %(table)s AND paused_at IS NULL
                  AND coalesce(max_concurrency_override, max_concurrency) IS NULL AND concurrency_key IS NULL)
    ORDER BY priority, run_at, id
    LIMIT %(demand)s
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
