-- How far a walk got. In the middle of it (reached not NULL) the next step comes soon. The next walk comes when the first of the rows that
-- were left, or of those that finish from now on, can have expired; not sooner than a hundredth of the retention, between a minute and an
-- hour, from now, since rows expire all the time where jobs finish all the time. What a retention of zero leaves behind can wait an hour.
-- expires_at: of this step, NULL: nothing that it saw ever expires. refused: it saw rows that can't be deleted: tried again in a day.
-- Dies before COMMIT: the step is taken again when due. Somebody else got there first, after all: the walk goes on from one of both places.
UPDATE cluster.prune_walks AS walk SET
    reached = %(reached)s,
    expires_at = CASE WHEN %(reached)s::bigint IS NOT NULL THEN next.expires_at END,
    due_at = CASE WHEN %(reached)s::bigint IS NOT NULL THEN now() + interval '0.2 seconds'
        ELSE greatest(now() + least(greatest(next.kept / 100, interval '1 minute'), interval '1 hour'),
                      least(next.expires_at, now() + coalesce(nullif(next.kept, interval '0'), interval '1 hour'))) END
FROM (
    SELECT job_table, least(retention, retention_failed) AS kept,
           least(expires_at, %(expires_at)s::timestamptz, CASE WHEN %(refused)s THEN now() + interval '1 day' END) AS expires_at
    FROM cluster.prune_walks WHERE job_table = %(table)s::oid
) AS next
WHERE walk.job_table = next.job_table
