-- The rows that run under this node's id, to be held against what the node knows: an answer that was lost may hide a claim.
-- Somebody may have written another locked_at into a row, even one that no interval can hold: such a claim is old.
-- Index: _running.
SELECT id, locked_at,
       CASE WHEN isfinite(locked_at) THEN abs(extract(epoch FROM clock_timestamp() - locked_at))::float8 ELSE 'infinity' END,
       cancel_requested_at IS NOT NULL
FROM {table} WHERE status = 'running' AND locked_by = %(node)s
