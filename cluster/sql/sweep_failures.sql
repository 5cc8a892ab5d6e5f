-- One window of a walk along the failed attempts of a table: those whose job is gone go too, also those of an older job that had the id before
-- the table was emptied. Returns the last row it saw, or no row at the end of the walk. Index: primary keys.
-- A job that is being deleted is still there: the next walk meets it. Dies before COMMIT: nothing happened. Runs twice: the second finds less.
WITH seen AS MATERIALIZED (
    SELECT job_id, at, attempt FROM cluster.failures
    WHERE job_table = %(table)s::oid AND (job_id, at, attempt) > (%(id)s::bigint, %(at)s::timestamptz, %(attempt)s::integer)
    ORDER BY job_id, at, attempt LIMIT %(window)s
), gone AS (
    DELETE FROM cluster.failures AS failure USING seen
    WHERE failure.job_table = %(table)s::oid AND (failure.job_id, failure.at, failure.attempt) = (seen.job_id, seen.at, seen.attempt)
      AND NOT EXISTS (SELECT FROM {table} AS job WHERE job.id = seen.job_id AND job.created_at <= seen.at)
)
SELECT job_id, at::text, attempt FROM seen OFFSET %(window)s - 1
