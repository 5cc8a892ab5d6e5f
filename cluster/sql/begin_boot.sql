-- The start of a cluster: this node is the only one, or the first of several that start together, and there was none for a lease. What has
-- stopped until then is active again, and what runs once in the life of a cluster waits for that. Runs twice: the second is a boot as
-- well, which is why a node asks only once.
WITH boot AS (
    UPDATE cluster.schedule_service SET boots = boots + 1, booted_at = now()
    WHERE EXISTS (SELECT FROM cluster.nodes WHERE id = %(node)s AND state = 'live')
      AND NOT EXISTS (SELECT FROM cluster.nodes AS other JOIN cluster.nodes AS this ON this.id = %(node)s
                      WHERE other.state IN ('live', 'draining') AND other.lease_until > now()
                        AND (other.started_at, other.id) < (this.started_at, this.id))
    RETURNING boots
)
UPDATE cluster.schedules AS s SET active = true WHERE EXISTS (SELECT FROM boot) AND s.active AND (s.state = 'stopped' OR s.run_once)
