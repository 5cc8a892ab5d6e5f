-- How far a walk got. In the middle of it (reached not NULL) the next step comes soon. At its end the next walk comes when the oldest row
-- that is left can have expired, though not sooner than a hundredth of the retention, between a minute and an hour, from now: rows expire
-- all the time where jobs finish all the time. Rows that finish from now on can't expire before the retention is over.
UPDATE cluster.prune_walks SET
    reached = %(reached)s,
    oldest = CASE WHEN %(reached)s::bigint IS NOT NULL THEN least(oldest, %(oldest)s::timestamptz) END,
    due_at = CASE WHEN %(reached)s::bigint IS NOT NULL THEN now() + interval '0.2 seconds'
        ELSE greatest(now() + least(greatest(least(retention, retention_failed) / 100, interval '1 minute'), interval '1 hour'),
                      coalesce(least(oldest, %(oldest)s::timestamptz), now()) + least(retention, retention_failed)) END
WHERE job_table = %(table)s::oid
