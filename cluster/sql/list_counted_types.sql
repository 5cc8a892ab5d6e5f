-- All job tables of the database, with or without a class on this node; the limit of each (NULL: none, or one for each value of its key),
-- and whether it is paused.
SELECT t.name, n.nspname, c.relname, c.oid::bigint, t.concurrency_key,
       CASE WHEN t.concurrency_key IS NULL THEN coalesce(t.max_concurrency_override, t.max_concurrency) END,
       t.paused_at IS NOT NULL
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
