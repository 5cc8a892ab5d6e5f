-- Schedules whose job has waited for a day, while no live node has a class for its table: the class is gone. Index:
-- schedule_runs_unfinished. Lock order: by name. Runs twice: the second changes nothing.
UPDATE cluster.schedules AS s SET
    state = 'deactivated', last_error = 'its job has waited for a day, and no live node has a class for ' || s.job_table
WHERE s.name = ANY (ARRAY(
    SELECT name FROM cluster.schedules AS waiting
    WHERE active AND on_error = 'deactivate'
      AND name = ANY (ARRAY(SELECT r.name FROM cluster.schedule_runs AS r
                            WHERE r.finished_at IS NULL AND r.fired_at < now() - interval '1 day'))
      AND NOT EXISTS (SELECT FROM cluster.nodes AS n JOIN cluster.job_types AS t ON t.name = ANY (n.jobs)
                      WHERE n.state IN ('live', 'draining') AND t.job_table = waiting.job_table)
    ORDER BY name FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING s.name, s.last_error
