"""The jobs of Attics. Its tables are where the cluster has its own."""
