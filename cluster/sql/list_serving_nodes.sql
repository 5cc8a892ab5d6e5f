-- Nodes by state, job types and queues that they serve. silent: it should live, and its lease is over.
SELECT CASE WHEN state IN ('live', 'draining') AND lease_until < now() THEN 'silent' ELSE state END AS shown, jobs, queues, count(*)
FROM cluster.nodes GROUP BY shown, jobs, queues
