-- A node tells what it has performed in the last minute, or since it told last. The middle of that time says which minute it was. A type
-- whose row is gone is left out. Lock order: rows of this node alone.
INSERT INTO cluster.minutes AS m (minute, job_table, node, succeeded, failed, seconds, waited)
SELECT date_trunc('minute', now() - interval '30 seconds'), t.job_table, %(node)s, n.succeeded, n.failed, n.seconds, n.waited::bigint[]
FROM unnest(%(job_type)s::text[], %(succeeded)s::bigint[], %(failed)s::bigint[], %(seconds)s::float8[], %(waited)s::text[])
     AS n (job_type, succeeded, failed, seconds, waited)
JOIN cluster.job_types AS t ON t.name = n.job_type
ON CONFLICT (minute, job_table, node) DO UPDATE SET
    succeeded = m.succeeded + excluded.succeeded, failed = m.failed + excluded.failed, seconds = m.seconds + excluded.seconds,
    waited = ARRAY(SELECT coalesce(a, 0) + coalesce(b, 0) FROM unnest(m.waited, excluded.waited) WITH ORDINALITY AS u (a, b, n) ORDER BY n)
