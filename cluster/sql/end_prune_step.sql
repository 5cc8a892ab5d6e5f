-- How far a walk got. In the middle of it (reached not NULL) the next step comes soon. The next walk comes when the first of the rows that
-- were left, or of those that finish from now on, can have expired; not sooner than a hundredth of the retention, between a minute and an
-- hour, from now, since rows expire all the time where jobs finish all the time. What a retention of zero leaves behind can wait an hour.
-- expires_at: of this step, NULL: nothing that it saw ever expires. refused: it saw rows that can't be deleted: tried again in a day.
-- retention, retention_failed: those of the step. If migrate has changed them meanwhile, the walk has begun anew, and is left as it is: the
-- row's newest version is compared. Dies before COMMIT: the step is taken again when due. Runs twice: the second says the same.
UPDATE cluster.prune_walks SET
    reached = %(reached)s,
    expires_at = CASE WHEN %(reached)s::bigint IS NOT NULL
        THEN least(expires_at, %(expires_at)s::timestamptz, CASE WHEN %(refused)s THEN now() + interval '1 day' END) END,
    due_at = CASE WHEN %(reached)s::bigint IS NOT NULL THEN now() + interval '0.2 seconds'
        ELSE greatest(now() + least(greatest(least(retention, retention_failed) / 100, interval '1 minute'), interval '1 hour'),
                      least(expires_at, %(expires_at)s::timestamptz, CASE WHEN %(refused)s THEN now() + interval '1 day' END,
                            now() + coalesce(nullif(least(retention, retention_failed), interval '0'), interval '1 hour'))) END
WHERE job_table = %(table)s::oid
  AND (retention, retention_failed) IS NOT DISTINCT FROM (%(retention)s::interval, %(retention_failed)s::interval)
