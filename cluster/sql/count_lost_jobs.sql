-- How many jobs a node was lost with, by the first look at them: a single one may have been its death. Later looks find fewer, when
-- others have taken some back, so the first to say stays right; it is said before any of them goes back.
-- Runs twice, or on many nodes at once: all get the first number, since the row's newest version is what they read.
-- Dies before COMMIT: nothing happened. Dies after: whoever looks next has the number.
UPDATE cluster.nodes AS node SET lost_with = coalesce(node.lost_with, found.number)
FROM unnest(%(id)s::uuid[], %(number)s::integer[]) AS found (id, number)
WHERE node.id = found.id AND node.state = 'lost'
RETURNING node.id, node.lost_with
