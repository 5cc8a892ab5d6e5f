"""All recordings of a band that is new here."""

from __future__ import annotations

import os
from typing import Annotated
from urllib.request import urlopen
from uuid import UUID

import psycopg

from cluster import Job, References

DATABASE = os.environ.get("CLUSTER_DATABASE_URL", "")


class InitialScrapeJob(Job):
    """Reads the band's page, a title a line."""

    band_id: Annotated[UUID, References("bands.id", on_delete="cascade")]

    def perform(self) -> None:
        with psycopg.connect(DATABASE, autocommit=True) as connection:
            row = connection.execute("SELECT url FROM bands WHERE id = %s", [self.band_id]).fetchone()
            assert row is not None
            with urlopen(row[0], timeout=30) as page:  # noqa: S310 - the owner of the table writes it
                titles = page.read().decode().split("\n")
            connection.execute(
                "INSERT INTO recordings SELECT %s, title FROM unnest(%s::text[]) AS title WHERE title <> '' ON CONFLICT DO NOTHING",
                [self.band_id, titles],
            )
