-- Tries to go on watch for tables. 'watching': this session now holds the doorbell. 'producers': only transactions that
-- inserted hold it, nobody is on watch, so stay awake. 'watched': another coordinator is on watch.
-- CASE, since AND and OR promise no order of evaluation.
SELECT t, CASE
    WHEN pg_try_advisory_lock(%(class)s::integer, t::integer) THEN 'watching'
    WHEN pg_try_advisory_lock_shared(%(class)s::integer, t::integer)
        THEN CASE WHEN pg_advisory_unlock_shared(%(class)s::integer, t::integer) THEN 'producers' END
    ELSE 'watched'
END FROM unnest(%(tables)s::oid[]) AS t
