"""Dashboards and rules of a job cluster as code: `python -m grafana.build` writes what is generated from it."""
