-- Goes off watch for tables.
SELECT pg_advisory_unlock(%(class)s::integer, t::integer) FROM unnest(%(tables)s::oid[]) AS t
