-- The turn to claim rows of a type with a limit, until the transaction ends: a lock on its row, by try. Not an advisory lock: those are
-- there for every login to hold, and this one only for who may update the table.
-- The claim reads the answer from the setting: a lock in the claim itself would be taken after its snapshot.
-- Index: primary key of cluster.turns.
SELECT set_config('cluster.claim', coalesce((
    SELECT true FROM cluster.turns WHERE job_table = %(table)s::oid FOR NO KEY UPDATE SKIP LOCKED
), false)::text, true)
