-- Whether this node tells of the whole cluster: of the live nodes the one that has been there longest; where all drain, of those.
-- The database's clock, in seconds.
-- Reads only. When that node dies, the next is told so as soon as the lease is over, or the row is closed.
SELECT (SELECT id FROM cluster.nodes WHERE state IN ('live', 'draining') AND lease_until >= now()
        ORDER BY state = 'draining', started_at, id LIMIT 1) = %(node)s,
       extract(epoch FROM clock_timestamp())::float8
