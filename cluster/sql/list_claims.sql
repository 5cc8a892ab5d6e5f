-- The rows that run under this node's id, to be held against what the node knows: an answer that was lost may hide a claim.
-- Index: _running.
SELECT id, locked_at, extract(epoch FROM clock_timestamp() - locked_at)::float8, cancel_requested_at IS NOT NULL
FROM {table} WHERE status = 'running' AND locked_by = %(node)s
