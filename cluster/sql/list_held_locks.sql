-- Locks of ours that others hold: class, second key, process and role.
-- Advisory locks, which every login may hold: the doorbell, exclusively, and the lock of a living node. Who may not write cluster.nodes
-- is no node; who may is one if it says so, or if its process is known. And (class 0) rows of cluster.turns, which nodes hold for
-- milliseconds, and nobody else has to.
SELECT l.classid::bigint, CASE WHEN l.classid = %(node)s::integer::oid THEN 0 ELSE l.objid::bigint END, l.pid, coalesce(a.usename::text, '?')
FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.objsubid = 2 AND l.granted
  AND CASE l.classid
      WHEN %(doorbell)s::integer::oid THEN l.mode = 'ExclusiveLock'
      WHEN %(node)s::integer::oid THEN l.objid::bigint IN (
          SELECT hashtext(id::text)::bigint & 4294967295 FROM cluster.nodes WHERE state IN ('live', 'draining'))
      ELSE false END
  AND (NOT coalesce(has_table_privilege(a.usesysid, 'cluster.nodes', 'UPDATE'), false)
       OR a.application_name NOT LIKE 'jobcluster %%'
          AND NOT EXISTS (SELECT FROM cluster.nodes WHERE l.pid IN (session_pid, listen_pid)))
UNION ALL
SELECT 0, 0, l.pid, coalesce(a.usename::text, '?')
FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = 'cluster.turns'::regclass AND l.granted AND l.mode <> 'AccessShareLock'
  AND coalesce(a.application_name NOT LIKE 'jobcluster %%', true)
