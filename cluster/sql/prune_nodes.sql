-- Ended nodes are kept for a day, for people to look at; never one that still holds a job.
DELETE FROM cluster.nodes WHERE state IN ('stopped', 'lost') AND heartbeat_at < now() - interval '1 day'
