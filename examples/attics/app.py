"""The dashboard of Attics: a band's name stands in its lists, pages and forms instead of its id.

Run: uvicorn examples.attics.app:app
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from starlette.applications import Starlette
from starlette.routing import Mount

from cluster.dashboard import JobView, NoAuth, User, dashboard
from cluster.dashboard.database import Connection
from cluster.dashboard.job_views import Row
from examples.attics.jobs.initial_scrape import InitialScrapeJob

BANDS = "SELECT id, name, (SELECT count(*) FROM recordings WHERE band_id = bands.id) AS recordings FROM bands WHERE id = ANY (%s)"


async def with_band(connection: Connection, jobs: list[Row]) -> None:
    """Of all jobs of a page in one statement."""
    ids = [UUID(job["band_id"]) for job in jobs]
    bands = {str(row["id"]): row for row in await (await connection.execute(BANDS, [ids])).fetchall()}
    for job in jobs:
        band = bands.get(job["band_id"], {})
        job["band"], job["recordings"] = band.get("name", "a band that is gone"), band.get("recordings", 0)


async def scrape_once(connection: Connection, _: User, values: Mapping[str, str]) -> int:
    """A new job of the band, unless one waits already."""
    band = UUID(values["band_id"])
    waiting = "SELECT id FROM initial_scrape_jobs WHERE band_id = %s AND status = 'not_started'"
    if await (await connection.execute(waiting, [band])).fetchone():
        raise ValueError("This band's recordings will be read soon: a job waits already.")
    query = "INSERT INTO initial_scrape_jobs (band_id) VALUES (%s) RETURNING id"
    row = await (await connection.execute(query, [band])).fetchone()
    assert row is not None
    number: int = row["id"]
    return number


VIEW = JobView(
    InitialScrapeJob,
    title="Initial scrapes",
    include=with_band,
    headings={"band_name": "Band", "updated_at": "Updated at"},
    list_columns=["band_name", "updated_at", "status"],
    cells={"band_name": lambda jobs: [job["band"] for job in jobs]},
    templates=Path(__file__).parent / "templates",
    section="section.html",
    detail="detail.html",
    form="form.html",
    create=scrape_once,
)

app = Starlette(routes=[Mount("/jobs", dashboard(auth=NoAuth(), jobs=[VIEW]))])
