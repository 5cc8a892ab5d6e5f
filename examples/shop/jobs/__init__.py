"""The shop's jobs. Its tables are where the cluster has its own."""
