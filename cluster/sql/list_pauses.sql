-- What is paused, and why: job types by their table, queues by name ("*": everything; all types are paused with it). Reads only.
SELECT job_table::oid, NULL::text, coalesce(paused_reason, '') FROM cluster.job_types WHERE paused_at IS NOT NULL
UNION ALL
SELECT NULL, name, coalesce(paused_reason, '') FROM cluster.queues WHERE paused_at IS NOT NULL
