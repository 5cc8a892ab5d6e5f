-- Of these claims, the ones that are still this node's: a finish that missed them met a lock. The others are lost.
-- Index: primary key, see finish_jobs.
WITH found AS MATERIALIZED (
    SELECT id, status, locked_by, locked_at FROM {table} WHERE id = ANY (%(id)s::bigint[])
)
SELECT found.id FROM found
JOIN unnest(%(id)s::bigint[], %(locked_at)s::timestamptz[]) AS claim (id, locked_at)
  ON claim.id = found.id AND claim.locked_at = found.locked_at
WHERE found.status = 'running' AND found.locked_by = %(node)s
