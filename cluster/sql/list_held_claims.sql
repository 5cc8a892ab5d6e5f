-- Of these claims, the ones that are still this node's: a finish that missed them met a lock. The others are lost.
-- Index: primary key.
SELECT job.id FROM {table} AS job
JOIN unnest(%(id)s::bigint[], %(locked_at)s::timestamptz[]) AS claim (id, locked_at)
  ON claim.id = job.id AND claim.locked_at = job.locked_at
WHERE job.id = ANY (%(id)s::bigint[]) AND job.status = 'running' AND job.locked_by = %(node)s
