-- not_started -> running, for a type whose limit holds for each value of its key; NULL is no key, and has no limit.
-- Like claim_limited_jobs it runs after take_turn in the same READ COMMITTED transaction, takes nothing without the lock,
-- and counts every row that an earlier holder claimed.
-- It reaches so many open rows, best first, and as many parked rows of their keys (and of the keys given) as have room. Of each key
-- the best are claimed, as far as the demand goes; what has room stays open or is opened; what has none is parked.
-- Runs under the lock only, so no row is parked after the last job of its key has ended and looked for parked rows.
-- not_started -> failed, for rows that are too large for a node.
-- Indexes: _open, _open_others or _open_queue; _parked, _running_key, primary key. Dies before COMMIT: nothing happened.
WITH node AS MATERIALIZED (
    SELECT id FROM cluster.nodes WHERE id = %(node)s AND state = 'live' FOR KEY SHARE
), job_type AS MATERIALIZED (
    SELECT coalesce(max_concurrency_override, max_concurrency, 2147483647) AS most FROM cluster.job_types
    WHERE current_setting('cluster.claim') = 'true' AND job_table = %(table)s AND paused_at IS NULL
      AND concurrency_key = %(key)s AND coalesce(max_concurrency_override, 1) > 0
      AND EXISTS (SELECT FROM node)
), open AS MATERIALIZED (
    SELECT id, {key} AS key, priority, run_at, attempts_count, crashes_count, parked{bytes} FROM {table}
    WHERE status = 'not_started' AND NOT parked AND {queue_is} AND priority <= %(priority)s AND id <> ALL (%(set_aside)s)
      AND CASE WHEN %(only)s::bigint[] IS NULL THEN true ELSE id = ANY (%(only)s::bigint[]) END
      AND EXISTS (SELECT FROM job_type)
    ORDER BY priority, run_at, id
    LIMIT %(reach)s
    FOR NO KEY UPDATE SKIP LOCKED
), room AS MATERIALIZED (
    SELECT k.key, most - (SELECT count(*) FROM {table} WHERE status = 'running' AND {key} = k.key) AS room
    FROM (SELECT key FROM open WHERE key IS NOT NULL UNION SELECT unnest(%(keys)s::text[])::{key_type}) AS k, job_type
), parked AS MATERIALIZED (
    SELECT job.* FROM room, LATERAL (
        SELECT id, {key} AS key, priority, run_at, attempts_count, crashes_count, parked{bytes} FROM {table}
        WHERE parked AND {key} = room.key AND CASE WHEN {queue_is} THEN true ELSE false END AND id <> ALL (%(set_aside)s)
          AND CASE WHEN %(only)s::bigint[] IS NULL THEN true ELSE id = ANY (%(only)s::bigint[]) END
        ORDER BY priority, run_at, id
        LIMIT greatest(0, least(room.room, %(reach)s))
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS job
), ranked AS MATERIALIZED (
    SELECT job.*,
           room.room IS NULL OR row_number() OVER (PARTITION BY job.key ORDER BY job.priority, job.run_at, job.id) <= room.room AS fits
    FROM (SELECT * FROM open UNION ALL SELECT * FROM parked) AS job LEFT JOIN room ON room.key = job.key
), placed AS MATERIALIZED (
    SELECT id, attempts_count, crashes_count, row_number() OVER best AS place,
           count(*) FILTER (WHERE crashes_count > 0) OVER best AS crashed{bytes_upto}
    FROM ranked WHERE fits AND priority <= %(priority)s WINDOW best AS (ORDER BY priority, run_at, id ROWS UNBOUNDED PRECEDING)
), claimed AS MATERIALIZED (
    SELECT id FROM placed
    WHERE place <= %(demand)s AND (place <= %(slots)s OR attempts_count + 1 < %(max_attempts)s)
      AND (crashes_count = 0 OR crashed <= %(whole)s){bytes_fit}
), moved AS (
    UPDATE {table} SET parked = NOT parked, updated_at = now()
    WHERE id = ANY (ARRAY(SELECT id FROM ranked WHERE fits = parked AND id NOT IN (SELECT id FROM claimed){bytes_small}))
){too_large}
UPDATE {table} SET
    status = 'running', attempts_count = attempts_count + 1, locked_at = now(), locked_by = %(node)s,
    started_at = now(), finished_at = NULL, parked = false, updated_at = now()
WHERE id = ANY (ARRAY(SELECT id FROM claimed))
RETURNING id, attempts_count, crashes_count, locked_at, date_part('epoch', now() - run_at), queue, priority, run_at, created_at, scheduled_for,
    CASE WHEN schedule IS NOT NULL THEN (SELECT time_zone FROM cluster.schedules AS s WHERE s.name = schedule) END AS zone{columns}
