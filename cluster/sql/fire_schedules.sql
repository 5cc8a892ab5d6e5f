-- What is due becomes jobs: see cluster.fire_schedules. One transaction; runs twice: the second finds nothing that is due.
SELECT schedule, result, lag, error FROM cluster.fire_schedules(%(plans)s)
