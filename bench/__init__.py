"""The benchmark: `python -m bench`. Starts its own Postgres and real nodes, and measures them beside bare SQL."""
