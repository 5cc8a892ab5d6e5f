-- A walk for each job table that keeps finished rows for a time: a new one where there is none, or where they are to be kept for another
-- time than when it was planned. Walks of tables that are gone, or that keep all, end.
-- Runs twice, or on many nodes at once: the second changes nothing, and locks nothing where nothing is to be changed.
-- Dies before COMMIT: nothing happened; the next node to look plans.
WITH wanted AS MATERIALIZED (
    SELECT t.job_table, t.retention, t.retention_failed FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table
    WHERE t.retention IS NOT NULL OR t.retention_failed IS NOT NULL
), ended AS (
    DELETE FROM cluster.prune_walks WHERE job_table NOT IN (SELECT job_table FROM wanted)
)
INSERT INTO cluster.prune_walks AS walk (job_table, retention, retention_failed)
SELECT job_table, retention, retention_failed FROM wanted
WHERE NOT EXISTS (SELECT FROM cluster.prune_walks AS planned WHERE planned.job_table = wanted.job_table
                  AND (planned.retention, planned.retention_failed) IS NOT DISTINCT FROM (wanted.retention, wanted.retention_failed))
ORDER BY job_table
ON CONFLICT (job_table) DO UPDATE SET
    retention = excluded.retention, retention_failed = excluded.retention_failed, reached = NULL, expires_at = NULL, due_at = now()
WHERE (walk.retention, walk.retention_failed) IS DISTINCT FROM (excluded.retention, excluded.retention_failed)
