-- What living nodes have set aside, as they said with their last heartbeats, by job type and reason.
SELECT entry.job_type, entry.reason, max(entry.rows) AS rows, count(*) AS nodes,
       (extract(epoch FROM now()) - min(entry.since))::float AS age_seconds, min(entry.detail) AS detail
FROM cluster.nodes AS node,
     jsonb_to_recordset(node.trouble) AS entry (job_type text, reason text, rows bigint, since float, detail text)
WHERE node.state IN ('live', 'draining') AND node.lease_until >= now()
GROUP BY entry.job_type, entry.reason ORDER BY age_seconds DESC
