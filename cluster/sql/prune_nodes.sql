-- Ended nodes are kept for a day, for people to look at. A row that one of them still has is rescued all the same: its node is not live.
DELETE FROM cluster.nodes WHERE state IN ('stopped', 'lost') AND heartbeat_at < now() - interval '1 day'
