-- Schedules of which no job has succeeded in time. Index: schedules_wake. Runs twice: the second changes nothing.
UPDATE cluster.schedules AS s SET overdue_since = s.expect_from + s.expect_within
WHERE s.name = ANY (ARRAY(
    SELECT name FROM cluster.schedules
    WHERE wake_at <= now() AND overdue_since IS NULL AND expect_from + expect_within <= now()
    ORDER BY name FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING s.name
