-- Asks the jobs to end for which schedules wait that rather have a new one. By itself: the fire has locked schedules, an outcome locks
-- jobs first.
SELECT cluster.cancel(r.job_table, r.job_id) FROM cluster.schedule_runs AS r
WHERE r.name = ANY (%(names)s) AND r.finished_at IS NULL AND r.job_id IS NOT NULL
