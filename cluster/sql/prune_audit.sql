-- What people did more than 400 days ago is forgotten. Index: audit_at.
SELECT cluster.prune_audit()
