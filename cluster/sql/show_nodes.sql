-- All nodes as people see them: silent where the lease is over, those that have stopped last. drain_age_seconds: since when it is told to
-- drain; NULL: it is not.
SELECT n.id::text, hostname, pid, version, queues, jobs,
       CASE WHEN state IN ('live', 'draining') AND lease_until < now() THEN 'silent' ELSE state END AS state,
       running, slots, extract(epoch FROM now() - heartbeat_at)::float AS heartbeat_age_seconds,
       extract(epoch FROM CASE WHEN state IN ('live', 'draining') THEN now() ELSE heartbeat_at END - started_at)::float AS uptime_seconds,
       extract(epoch FROM now() - d.requested_at)::float AS drain_age_seconds, d.reason AS drain_reason
FROM cluster.nodes AS n LEFT JOIN cluster.drains AS d ON d.node = n.id AND n.state IN ('live', 'draining')
ORDER BY state = 'stopped', hostname, pid
