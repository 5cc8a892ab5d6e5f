-- Locks of ours that others hold: class, second key, process and role.
-- Advisory locks, which every login may hold: the doorbell, exclusively, and the lock of a living node. Who may not write cluster.nodes
-- is no node; who may is one if it says so, or if its process is known. And (class 0) rows of cluster.turns, which nodes hold for
-- milliseconds, and nobody else has to.
-- All locks of the server are read, once.
WITH lock AS MATERIALIZED (
    SELECT locktype, classid, objid, pid FROM pg_locks
    WHERE granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND CASE locktype
          WHEN 'advisory' THEN objsubid = 2
              AND (classid = %(node)s::integer::oid OR classid = %(doorbell)s::integer::oid AND mode = 'ExclusiveLock')
          WHEN 'relation' THEN relation = 'cluster.turns'::regclass AND mode <> 'AccessShareLock'
          ELSE false END
)
SELECT CASE locktype WHEN 'advisory' THEN classid::bigint ELSE 0 END,
       CASE WHEN classid = %(doorbell)s::integer::oid THEN objid::bigint ELSE 0 END, l.pid, coalesce(a.usename::text, '?')
FROM lock AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE CASE
    WHEN locktype = 'relation' THEN coalesce(a.application_name NOT LIKE 'jobcluster %%', true)
    ELSE (classid = %(doorbell)s::integer::oid OR objid::bigint IN (
              SELECT hashtext(id::text)::bigint & 4294967295 FROM cluster.nodes WHERE state IN ('live', 'draining')))
         AND (NOT coalesce(has_table_privilege(a.usesysid, 'cluster.nodes', 'UPDATE'), false)
              OR a.application_name NOT LIKE 'jobcluster %%'
                 AND NOT EXISTS (SELECT FROM cluster.nodes WHERE l.pid IN (session_pid, listen_pid)))
    END
