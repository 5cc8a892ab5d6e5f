-- running -> gone, on success of a type with retention zero. Guarded and locked like finish_jobs. Index: primary key.
WITH outcome AS (
    SELECT * FROM unnest(%(id)s::bigint[], %(locked_at)s::timestamptz[]) WITH ORDINALITY AS o (id, locked_at, place)
), held AS MATERIALIZED (
    SELECT id, status, locked_by FROM {table} WHERE id = ANY (%(id)s::bigint[]) ORDER BY id FOR UPDATE SKIP LOCKED
)
DELETE FROM {table} AS job USING outcome AS o
WHERE job.id = ANY (ARRAY(SELECT id FROM held WHERE status = 'running' AND locked_by = %(node)s))
  AND o.id = job.id AND job.locked_at = o.locked_at
RETURNING o.place{key_text}
