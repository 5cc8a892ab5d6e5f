-- Failed attempts of a table that was dropped, a batch of them. Index: primary key. Runs twice: the second takes the next ones.
DELETE FROM cluster.failures WHERE job_table = %(table)s::oid AND (job_id, at, attempt) IN (
    SELECT job_id, at, attempt FROM cluster.failures WHERE job_table = %(table)s::oid ORDER BY job_id, at, attempt LIMIT %(window)s
)
