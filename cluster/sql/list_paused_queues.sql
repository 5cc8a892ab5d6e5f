-- Queues that operators have paused; the queue * stands for everything. For the census.
SELECT name FROM cluster.queues WHERE paused_at IS NOT NULL ORDER BY name
