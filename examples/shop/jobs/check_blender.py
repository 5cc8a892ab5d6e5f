"""Exit: gives up when what it looks after is gone."""

from __future__ import annotations

import os

import psycopg

from cluster import Every, Job, Next

DATABASE = os.environ.get("CLUSTER_DATABASE_URL", "")


class CheckBlenderJob(Job):
    """Looks for the blender."""

    schedule = Every(minutes=5)

    def perform(self) -> Next:
        with psycopg.connect(DATABASE) as connection:
            found = connection.execute("SELECT stock FROM products WHERE type = 'blender'").fetchone()
        if found is None:
            self.log.error("there is no blender")
            return self.EXIT
        return self.OK
