-- Finished rows -> gone. State and retention are checked again: a row that was retried in the meantime stays, and so does one that is now
-- to be kept for longer. Dies before COMMIT: nothing happened. Runs twice: the second finds nothing. Index: primary key.
DELETE FROM {table} AS job USING cluster.job_types AS type
WHERE type.job_table = %(table)s::oid AND job.id = ANY (%(id)s) AND (
    job.status = 'succeeded' AND job.finished_at < now() - type.retention
    OR job.status IN ('failed', 'timed_out', 'cancelled') AND job.finished_at < now() - type.retention_failed)
