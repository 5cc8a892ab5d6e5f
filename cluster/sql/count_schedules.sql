-- Schedules by state, each counted up to a bound, and those that are overdue. Indexes: schedules_state, schedules_overdue.
SELECT state, (SELECT count(*) FROM (SELECT FROM cluster.schedules AS s WHERE s.state = states.state LIMIT %(most)s) AS found)
FROM unnest(ARRAY['active', 'sleeping', 'stopped', 'deactivated', 'run_once_waiting', 'run_once_done']) AS states (state)
UNION ALL
SELECT 'overdue', count(*) FROM (SELECT FROM cluster.schedules WHERE overdue_since IS NOT NULL LIMIT %(most)s) AS found
