-- Takes the next step of one walk that is due: nobody else takes it for the next seconds. If the node dies, another goes on from the same
-- place; deleting a row twice does nothing. leave: tables that this node can't prune, by oid.
WITH due AS MATERIALIZED (
    SELECT walk.job_table FROM cluster.prune_walks AS walk
    WHERE walk.due_at <= now() AND walk.job_table <> ALL (%(leave)s::oid[])
    ORDER BY walk.due_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE cluster.prune_walks AS walk SET due_at = now() + interval '10 seconds'
FROM due JOIN cluster.job_types AS t ON t.job_table = due.job_table
JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE walk.job_table = due.job_table
RETURNING walk.job_table::oid, t.name, n.nspname, c.relname, walk.retention, walk.retention_failed, walk.reached
