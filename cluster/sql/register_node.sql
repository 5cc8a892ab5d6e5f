-- A node starts: a new row, live from now on. One that has lost its registration `before` drains on if that one was told to.
WITH told AS (
    INSERT INTO cluster.drains (node, requested_at, reason)
    SELECT %(id)s, requested_at, reason FROM cluster.drains WHERE node = %(before)s RETURNING node
)
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, session_pid, listen_pid, code, state)
VALUES (%(id)s, %(hostname)s, %(pid)s, %(version)s, %(queues)s, %(jobs)s, now() + %(lease)s, %(slots)s, %(session_pid)s, %(listen_pid)s,
        %(code)s, CASE WHEN EXISTS (SELECT FROM told) THEN 'draining' ELSE 'live' END)
