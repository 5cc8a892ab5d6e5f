"""Recurring: runs every two minutes, for ever."""

from __future__ import annotations

import os
from datetime import timedelta

import psycopg

from cluster import Every, Job, Next

DATABASE = os.environ.get("CLUSTER_DATABASE_URL", "")


class CheckStockJob(Job):
    """Marks bikes that are out of stock."""

    schedule = Every(minutes=2, expect_within=timedelta(minutes=10))

    def perform(self) -> Next:
        with psycopg.connect(DATABASE) as connection:
            connection.execute("UPDATE products SET out_of_stock = true WHERE type = 'Red Bikes' AND stock = 0")
        return self.OK
