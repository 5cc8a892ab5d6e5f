-- A node says that it lives, and hears whether it was told to drain. No row: it was declared lost. Waits for no lock but that of a
-- rescuer closing this very row.
UPDATE cluster.nodes AS n SET
    heartbeat_at = clock_timestamp(), lease_until = clock_timestamp() + %(lease)s, running = %(running)s, slots = %(slots)s,
    session_pid = %(session_pid)s, listen_pid = %(listen_pid)s, trouble = %(trouble)s, work = %(work)s,
    state = CASE WHEN %(draining)s OR EXISTS (SELECT FROM cluster.drains WHERE node = n.id) THEN 'draining' ELSE 'live' END
WHERE id = %(id)s AND state IN ('live', 'draining')
RETURNING EXISTS (SELECT FROM cluster.drains WHERE node = n.id)
