-- Ended nodes are kept for a day, for people to look at. A row that one of them still has is rescued all the same: its node is not live.
-- What they were told of draining goes with their end; of a row that is not there yet, a minute later.
WITH forgotten AS (
    DELETE FROM cluster.drains WHERE requested_at < now() - interval '1 minute'
        AND node NOT IN (SELECT id FROM cluster.nodes WHERE state IN ('live', 'draining'))
)
DELETE FROM cluster.nodes WHERE state IN ('stopped', 'lost') AND heartbeat_at < now() - interval '1 day'
