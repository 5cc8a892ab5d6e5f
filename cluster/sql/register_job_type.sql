-- The row of a node's class in cluster.job_types that somebody has deleted, or that a restore has lost; one that is there is never changed
-- here, or a rolling deploy would undo migrate. Another class of this name, or another node at the same time: nothing happens.
INSERT INTO cluster.job_types (name, job_table, max_concurrency, concurrency_key, max_attempts, max_crashes, retention, retention_failed)
SELECT %(name)s, %(table)s::oid, %(max_concurrency)s, %(concurrency_key)s, %(max_attempts)s, %(max_crashes)s, %(retention)s, %(retention_failed)s
WHERE NOT EXISTS (SELECT FROM cluster.job_types WHERE job_table = %(table)s::oid)
ON CONFLICT DO NOTHING
