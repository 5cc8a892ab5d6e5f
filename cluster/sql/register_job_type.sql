-- A node's class whose row somebody deleted; an existing row is never changed here, or a rolling deploy would undo migrate.
INSERT INTO cluster.job_types (name, job_table, max_concurrency, concurrency_key, max_attempts, max_crashes, retention, retention_failed)
SELECT %(name)s, %(table)s::oid, %(max_concurrency)s, %(concurrency_key)s, %(max_attempts)s, %(max_crashes)s, %(retention)s, %(retention_failed)s
WHERE NOT EXISTS (SELECT FROM cluster.job_types WHERE job_table = %(table)s::oid)
ON CONFLICT DO NOTHING
