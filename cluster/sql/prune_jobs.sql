-- Finished rows -> gone. The state is checked again: a row that was retried in the meantime stays. Index: primary key.
DELETE FROM {table} WHERE id = ANY (%(id)s) AND (
    status = 'succeeded' AND finished_at < now() - %(retention)s::interval
    OR status IN ('failed', 'timed_out', 'cancelled') AND finished_at < now() - %(retention_failed)s::interval)
