-- running -> succeeded: finish_jobs for the common case, where there is nothing to say but when it began.
-- Guarded and locked like finish_jobs. Index: primary key. Runs twice: the second hits nothing.
WITH outcome AS (
    SELECT * FROM unnest(%(id)s::bigint[], %(locked_at)s::timestamptz[], %(begun)s::float8[]) WITH ORDINALITY AS o (id, locked_at, begun, place)
), held AS MATERIALIZED (
    SELECT id, status, locked_by FROM {table} WHERE id = ANY (%(id)s::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE {table} AS job SET
    status = 'succeeded',
    started_at = job.locked_at + make_interval(secs => o.begun),
    finished_at = now(),
    locked_at = NULL,
    updated_at = now()
FROM outcome AS o
WHERE job.id = ANY (ARRAY(SELECT id FROM held WHERE status = 'running' AND locked_by = %(node)s))
  AND o.id = job.id AND job.locked_at = o.locked_at
RETURNING o.place{key_text}
