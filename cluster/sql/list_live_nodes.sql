-- Every node that may hold jobs, as a rescuer sees it: has its heartbeat moved, how long is its lease, does the session
-- that it gave hold its lock?
-- pg_locks is only read: taking the lock to try it would keep its owner from having it.
SELECT n.id, n.heartbeat_at, extract(epoch FROM n.lease_until - n.heartbeat_at)::float8, n.session_pid, EXISTS (
    SELECT FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid = %(class)s::integer::oid AND l.objid::bigint = (hashtext(n.id::text)::bigint & 4294967295) AND l.objsubid = 2
      AND l.pid = n.session_pid
)
FROM cluster.nodes AS n WHERE n.state IN ('live', 'draining')
