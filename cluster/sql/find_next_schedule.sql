-- Seconds until the first schedule needs a node; none: no row. Index: schedules_wake, one probe.
SELECT extract(epoch FROM wake_at - clock_timestamp())::float8 FROM cluster.schedules WHERE wake_at IS NOT NULL ORDER BY wake_at LIMIT 1
