-- All nodes as people see them: silent where the lease is over, those that have stopped last.
SELECT id::text, hostname, pid, version, queues, jobs,
       CASE WHEN state IN ('live', 'draining') AND lease_until < now() THEN 'silent' ELSE state END AS state,
       running, slots, extract(epoch FROM now() - heartbeat_at)::float AS heartbeat_age_seconds
FROM cluster.nodes ORDER BY state = 'stopped', hostname, pid
