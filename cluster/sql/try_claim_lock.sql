-- The mutex around claim + count of a limited type, until the transaction ends. The claim reads the answer from the setting:
-- a lock function in the claim itself would run after its snapshot was taken.
SELECT set_config('cluster.claim', pg_try_advisory_xact_lock(%(class)s::integer, %(table)s::oid::integer)::text, true)
