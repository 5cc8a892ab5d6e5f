-- A node has ended cleanly: it holds no job any more.
UPDATE cluster.nodes SET state = 'stopped', running = 0, heartbeat_at = clock_timestamp()
WHERE id = %(id)s AND state IN ('live', 'draining')
