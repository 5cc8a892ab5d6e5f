-- All job tables of the database, with or without a class on this node.
SELECT t.name, t.job_table::oid AS table, t.job_table::text AS table_name
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table
ORDER BY t.name
