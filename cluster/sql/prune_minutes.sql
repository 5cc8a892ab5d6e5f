-- Minutes are kept for a day. Rows that another node is deleting are left to it. Index: the primary key.
DELETE FROM cluster.minutes WHERE (minute, job_table, node) IN (
    SELECT minute, job_table, node FROM cluster.minutes WHERE minute < now() - interval '1 day'
    ORDER BY minute LIMIT 5000 FOR UPDATE SKIP LOCKED
)
