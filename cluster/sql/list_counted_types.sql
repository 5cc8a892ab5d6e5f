-- All job tables of the database, with or without a class on this node; the limit of each (NULL: none, or one for each value of its key).
SELECT t.name, n.nspname, c.relname, t.concurrency_key,
       CASE WHEN t.concurrency_key IS NULL THEN coalesce(t.max_concurrency_override, t.max_concurrency) END
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
