-- Occurrences of schedules are kept for 30 days, those whose job is not finished for longer. Index: schedule_runs_due.
DELETE FROM cluster.schedule_runs WHERE (name, due_at) IN (
    SELECT name, due_at FROM cluster.schedule_runs WHERE due_at < now() - interval '30 days' AND finished_at IS NOT NULL
    ORDER BY due_at LIMIT 5000
)
