-- All job tables of the database: a node rescues also jobs whose class it does not have.
SELECT t.name, n.nspname, c.relname, t.max_attempts, t.max_crashes
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
