"""Sleep: looks at the day once a day."""

from __future__ import annotations

import os

import psycopg

from cluster import Every, Job, Next

DATABASE = os.environ.get("CLUSTER_DATABASE_URL", "")


class EndSpecialsJob(Job):
    """No specials on Sundays."""

    schedule = Every(minutes=1)

    def perform(self) -> Next:
        if self.now.day() == "Sun":
            with psycopg.connect(DATABASE) as connection:
                connection.execute("UPDATE shop_status SET no_specials = true WHERE NOT no_specials")
        return self.SLEEP
