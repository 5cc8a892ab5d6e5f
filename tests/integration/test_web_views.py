"""How an application has its own types shown in the dashboard, and the Attics example, which does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from markupsafe import Markup

from cluster import Job
from cluster.dashboard import JobView, Scene, User
from cluster.migration import migrate_jobs
from examples.attics.app import VIEW
from examples.attics.jobs.initial_scrape import InitialScrapeJob
from tests.integration.test_web import browsing, send
from tests.support.rows import run

ATTICS = Path(__file__).parents[2] / "examples" / "attics"
HOSTILE = "<script>alert(1)</script>"


class SongJob(Job):
    song: str
    year: int = 1970

    async def perform(self) -> None: ...


class OtherJob(Job):
    async def perform(self) -> None: ...


def songs(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [SongJob, OtherJob])
    run(conn, "INSERT INTO song_jobs (song, year) VALUES ('Hey', 1968), ('Help', 1965)")


async def test_a_dashboard_shows_the_types_that_it_is_given_and_no_others(
    database_url: str, conn: psycopg.Connection
) -> None:
    songs(conn)
    for jobs in ([SongJob], ["song_jobs"], ["SongJob"], ["public.song_jobs"], [JobView(SongJob)]):
        async with browsing(database_url, jobs=jobs) as web:
            page = (await web.get("/")).text
            assert ("/song_jobs" in page, "/other_jobs" in page) == (True, False), jobs
            assert (await web.get("/other_jobs")).status_code == 404
            assert (await web.get("/song_jobs")).status_code == 200
    async with browsing(database_url, jobs=[SongJob, OtherJob]) as web:
        page = (await web.get("/")).text
        assert page.index("/song_jobs") < page.index("/other_jobs")


async def test_columns_headings_labels_and_cells_are_the_applications(
    database_url: str, conn: psycopg.Connection
) -> None:
    songs(conn)
    asked = []

    def lengths(jobs: list[dict[str, Any]]) -> list[object]:
        asked.append(len(jobs))
        return [Markup("<b>{}</b>").format(len(job["song"])) for job in jobs]

    view = JobView(
        SongJob, title="Songs", headings={"song": "Song", "length": "Letters"}, columns=["length", "year"],
        list_columns=["song", "length", "year", "status", "gone"], cells={"length": lengths},
        labels={"year": "SELECT year, 'the year ' || year FROM song_jobs"},
    )  # fmt: skip
    async with browsing(database_url, jobs=[view]) as web:
        page = (await web.get("/song_jobs")).text
        assert re.findall(r'<th scope="col"[^>]*>([^<]+)', page) == ["Id", "Song", "Letters", "year", "Status"]
        assert ("<h1>Songs</h1>" in page, "<b>4</b>" in page, ">the year 1968</a>" in page, asked) == (
            True,
            True,
            True,
            [2],
        )
        assert '<option value="1965">the year 1965</option>' in (await web.get("/song_jobs?add=year")).text
        page = (await web.get("/song_jobs/1")).text
        assert ("<b>3</b>" in page, "the year 1968" in page, "<dt>song" in page) == (True, True, False)
        assert "the year 1968" in (await web.get("/song_jobs/new")).text


async def test_parts_of_pages_are_functions_or_templates_which_escape(
    database_url: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    songs(conn)
    conn.execute("INSERT INTO song_jobs (song) VALUES (%s)", [HOSTILE])
    (tmp_path / "page.html").write_text("{% for job in jobs %}<i>{{ job.song }}</i>{% endfor %}{{ base }}")

    async def section(scene: Scene) -> str:
        row = await (await scene.connection.execute("SELECT count(*) AS songs FROM song_jobs")).fetchone()
        return f"{row['songs'] if row else 0} songs, the last {scene.job['song']}"

    view = JobView(
        SongJob, templates=tmp_path, section=section, page="page.html",
        detail=lambda scene: Markup("<u>{}</u>").format(scene.job["song"]), form=lambda scene: f"no form {HOSTILE}",
    )  # fmt: skip
    async with browsing(database_url, jobs=[view]) as web:
        assert "3 songs, the last &lt;script&gt;" in (await web.get("/")).text
        assert "<i>&lt;script&gt;" in (page := (await web.get("/song_jobs")).text)
        assert "<i>Help</i>" in page
        assert "<u>Hey</u>" in (await web.get("/song_jobs/1")).text
        for path in ("/", "/song_jobs", "/song_jobs/3", "/song_jobs/new"):
            assert HOSTILE not in (await web.get(path)).text, path
    async with browsing(
        database_url, jobs=[JobView(SongJob, row=lambda job: Markup("<td>♪ {}</td>").format(job["song"]))]
    ) as web:
        page = (await web.get("/song_jobs")).text
        assert ("<td>♪ Hey</td>" in page, HOSTILE in page) == (True, False)


async def test_a_view_that_fails_says_so_in_its_place_and_spoils_nothing_else(
    database_url: str, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    songs(conn)

    async def broken(connection: Any, _: Any) -> None:
        await connection.execute("SELECT nothing FROM nowhere")

    def bad(_: object) -> Any:
        raise ValueError(HOSTILE)

    views = [
        JobView(SongJob, section="none.html", detail=bad, cells={"a": bad}, list_columns=["a", "song"], form=bad),
        JobView(SongJob, include=broken, list_columns=["song"], labels={"year": "SELECT nonsense"}, row=bad),
    ]
    for view in views:
        async with browsing(database_url, jobs=[view]) as web:
            for path in ("/", "/song_jobs", "/song_jobs/1", "/song_jobs/new"):
                page = await web.get(path)
                assert (page.status_code, HOSTILE in page.text) == (200, False), path
            assert "The view of SongJob fails here" in (await web.get("/song_jobs")).text
    assert "the view of" in caplog.text


async def test_jobs_are_made_as_the_application_makes_them(database_url: str, conn: psycopg.Connection) -> None:
    songs(conn)

    async def create(connection: Any, user: User, values: Mapping[str, str]) -> int:
        if not values.get("song"):
            raise ValueError(f"no song {HOSTILE}")
        query = "INSERT INTO song_jobs (song, year) VALUES (%s, %s) RETURNING id"
        row = await (await connection.execute(query, [f"{values['song']} by {user.name}", values["year"]])).fetchone()
        return int(row["id"])

    async with browsing(database_url, jobs=[JobView(SongJob, create=create)]) as web:
        made = await send(web, "/song_jobs/new", "/song_jobs/new", c__song="Yes", c__year="1971")
        assert "Job 3 is new" in made.text
        for sent, said in (({}, "no song &lt;script&gt;"), ({"c__song": "a", "c__year": "x"}, "invalid input syntax")):
            refused = await send(web, "/song_jobs/new", "/song_jobs/new", **sent)
            assert (refused.status_code, said in refused.text) == (422, True)
    assert run(conn, "SELECT song FROM song_jobs WHERE id > 2") == [("Yes by anybody",)]
    assert run(conn, "SELECT action, target FROM cluster.audit") == [("new", "song_jobs 3")]


# --- the example ---


@pytest.fixture
def attics(conn: psycopg.Connection) -> None:
    conn.execute((ATTICS / "schema.sql").read_bytes())
    conn.execute("INSERT INTO bands (name, url) VALUES ('Ann & the Others', 'file:///none'), ('Zed', 'file:///none')")
    migrate_jobs(conn, [InitialScrapeJob])
    run(conn, "INSERT INTO initial_scrape_jobs (band_id) SELECT id FROM bands WHERE name = 'Zed'")


@pytest.mark.usefixtures("attics")
async def test_a_band_goes_by_its_name_in_the_list_on_the_page_and_in_the_form(
    database_url: str, conn: psycopg.Connection
) -> None:
    (zed,) = run(conn, "SELECT id::text FROM bands WHERE name = 'Zed'")[0]
    (ann,) = run(conn, "SELECT id::text FROM bands WHERE name <> 'Zed'")[0]

    def heads(page: httpx.Response) -> list[str]:
        return re.findall(r'<th scope="col"[^>]*>([^<]+)', page.text)

    async with browsing(database_url, jobs=[VIEW]) as web:
        assert heads(await web.get("/"))[-4:] == ["Band", "Recordings", "Updated", "Status"]
        assert ">Zed</a>" in (await web.get("/")).text
        page = await web.get("/initial_scrape_jobs")
        assert heads(page) == ["Id", "Band", "Updated at", "Status"]
        assert '<td data-label="Band">Zed</td>' in page.text
        assert zed not in page.text
        assert "Scrape Zed again" in (await web.get("/initial_scrape_jobs/1")).text
        form = (await web.get(f"/initial_scrape_jobs/new?c.band_id={zed}")).text
        assert f'value="{zed}" list="bands"' in form
        assert re.search(rf'<option value="{ann}">Ann &amp; the Others</option>', form)
        refused = await send(web, "/initial_scrape_jobs/new", "/initial_scrape_jobs/new", c__band_id=zed)
        assert (refused.status_code, "a job waits already" in refused.text) == (422, True)
        made = await send(web, "/initial_scrape_jobs/new", "/initial_scrape_jobs/new", c__band_id=ann)
        assert "Job 2 is new" in made.text


@pytest.mark.usefixtures("attics")
def test_the_job_of_attics_collects_recordings(
    database_url: str, conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.attics.jobs.initial_scrape.DATABASE", database_url)
    page = tmp_path / "page.txt"
    page.write_text("First night\nSecond night\n")
    conn.execute("UPDATE bands SET url = %s", [page.as_uri()])
    ((band,),) = run(conn, "SELECT id FROM bands WHERE name = 'Zed'")
    for _ in range(2):
        InitialScrapeJob(band_id=band).perform_now()
    assert run(conn, "SELECT title FROM recordings ORDER BY 1") == [("First night",), ("Second night",)]
