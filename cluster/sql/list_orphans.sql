-- Running rows whose node is neither live nor draining, with that node (NULL: it has none) and whether it was lost, not stopped.
-- Plain: nothing is locked, so rescue_jobs asks again. A row is visible as running only once its claim has committed, and with it its
-- node's row; a node that is being closed waits for its open claims first, so after that all its rows are seen.
-- set_aside: rows that refuse to be rescued.
-- Index: _running (from node to node, however many rows each has, and then those of the dead ones).
WITH RECURSIVE holder AS (
    (SELECT locked_by FROM {table} WHERE status = 'running' ORDER BY locked_by LIMIT 1)
    UNION ALL
    SELECT next.locked_by FROM holder, LATERAL (
        SELECT locked_by FROM {table} WHERE status = 'running' AND locked_by > holder.locked_by ORDER BY locked_by LIMIT 1
    ) AS next
), dead AS MATERIALIZED (
    SELECT holder.locked_by, node.state = 'lost' AS lost
    FROM holder LEFT JOIN cluster.nodes AS node ON node.id = holder.locked_by
    WHERE holder.locked_by IS NOT NULL AND (node.state IS NULL OR node.state NOT IN ('live', 'draining'))
)
SELECT * FROM (
    SELECT job.id, dead.locked_by, coalesce(dead.lost, false) AS lost FROM dead, LATERAL (
        SELECT id FROM {table} WHERE status = 'running' AND locked_by = dead.locked_by
    ) AS job
    UNION ALL
    SELECT id, NULL, false FROM {table} WHERE status = 'running' AND locked_by IS NULL
) AS orphan
WHERE id <> ALL (%(set_aside)s)
LIMIT %(limit)s
