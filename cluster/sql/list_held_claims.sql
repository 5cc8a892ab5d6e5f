-- Of these claims, which a finish has missed: true, the row is still this node's, so the finish met a lock; false, the outcome
-- was written before, by a finish whose answer was lost. No row: the claim is lost.
-- Index: primary key, see finish_jobs.
WITH found AS MATERIALIZED (
    SELECT id, status, locked_by, locked_at FROM {table} WHERE id = ANY (%(id)s::bigint[])
)
SELECT claim.place, found.status = 'running' FROM found
JOIN unnest(%(id)s::bigint[], %(locked_at)s::timestamptz[]) WITH ORDINALITY AS claim (id, locked_at, place) ON claim.id = found.id
WHERE found.locked_by = %(node)s AND (found.status <> 'running' OR found.locked_at = claim.locked_at)
