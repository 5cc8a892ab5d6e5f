-- Rows of one job table that are live and dead, as the statistics have it, and its bytes on disk, indexes included (NULL: it is gone).
-- For the census. Asks no index; waits only for whoever locks the whole table.
SELECT pg_stat_get_live_tuples(%(table)s::bigint::oid), pg_stat_get_dead_tuples(%(table)s::bigint::oid),
       pg_total_relation_size(%(table)s::bigint::oid)
