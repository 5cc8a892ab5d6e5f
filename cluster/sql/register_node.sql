-- A node starts: a new row, live from now on.
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, session_pid, listen_pid)
VALUES (%(id)s, %(hostname)s, %(pid)s, %(version)s, %(queues)s, %(jobs)s, now() + %(lease)s, %(slots)s, %(session_pid)s, %(listen_pid)s)
