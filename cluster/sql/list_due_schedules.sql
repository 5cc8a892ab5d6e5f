-- Schedules that a node has to look at now, first come first, as far as its time allows. locked: what others are about to fire is
-- left out by fire_schedules and plan_schedules, not here. Index: schedules_wake.
SELECT name, revision, cron, every, time_zone, starts_at, ends_at, jitter, overlap, misfire, plan_from, next_due_at, next_run_at, state, now()
FROM cluster.schedules WHERE wake_at <= now() ORDER BY wake_at LIMIT %(limit)s
