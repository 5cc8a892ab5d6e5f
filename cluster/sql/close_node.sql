-- First step of a rescue: a node that gave no sign of life is lost, and can neither renew nor claim from here on.
-- FOR UPDATE waits for its open claims, which hold the row FOR KEY SHARE; a plain UPDATE would not. No row: somebody else
-- closed it, or it renewed after all. Its sessions are ended, so that a stopped node can't keep a watch.
WITH node AS MATERIALIZED (
    SELECT id, session_pid, listen_pid FROM cluster.nodes
    WHERE id = %(id)s AND state IN ('live', 'draining') AND heartbeat_at = %(heartbeat_at)s
    FOR UPDATE
), ended AS MATERIALIZED (
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a
    WHERE a.pid IN (SELECT session_pid FROM node UNION ALL SELECT listen_pid FROM node)
      AND a.application_name LIKE 'jobcluster %%' AND a.usename = current_user
)
UPDATE cluster.nodes SET state = 'lost', running = 0
WHERE id IN (SELECT id FROM node)
RETURNING hostname, (SELECT count(*) FROM ended)
