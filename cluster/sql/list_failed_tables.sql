-- Tables that have failed attempts, by oid, with schema and name; both NULL: it was dropped.
-- Reads only. Index: primary key, from table to table, however many rows each has.
WITH RECURSIVE failed AS (
    (SELECT job_table::oid AS oid FROM cluster.failures ORDER BY job_table LIMIT 1)
    UNION ALL
    SELECT next.oid FROM failed, LATERAL (
        SELECT job_table::oid AS oid FROM cluster.failures WHERE job_table > failed.oid ORDER BY job_table LIMIT 1
    ) AS next
)
SELECT failed.oid, n.nspname, c.relname FROM failed
LEFT JOIN pg_class AS c ON c.oid = failed.oid LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace
