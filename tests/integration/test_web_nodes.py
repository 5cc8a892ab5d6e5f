"""The dashboard's pages of nodes, draining one there, and what a job waits for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from cluster.dashboard import User
from tests.integration.test_web import TABLES, browsing, send
from tests.support.rows import run

NODE = UUID(int=1)
NODES = """
INSERT INTO cluster.nodes (id, hostname, pid, version, lease_until, started_at, state, jobs, queues, slots, running, trouble) VALUES
    (%s, 'web-1', 7, '1.2', now() + interval '1 h', now() - interval '3 h', 'live', '{mail_jobs}', '{*}', 10, 4, %s),
    (%s, 'web-2', 8, '1.1', now(), now(), 'stopped', '{}', '{bulk}', 10, 0, '[]')
"""
TROUBLE = '[{"job_type": "mail_jobs", "reason": "claim_refused", "detail": "row 9: <no>", "rows": 2, "since": 1.0}]'
RUNNING = """
INSERT INTO mail_jobs (label) SELECT '<b>' FROM generate_series(1, 5);
UPDATE mail_jobs SET status = 'running', attempts_count = 1, locked_by = '00000000-0000-0000-0000-000000000001',
    locked_at = now() - id * interval '1 min', started_at = now() WHERE id < 5
"""
PAGE = f"/nodes/{NODE}"


@pytest.fixture
def seeded(conn: psycopg.Connection) -> psycopg.Connection:
    run(conn, TABLES)
    run(conn, NODES, NODE, TROUBLE, UUID(int=2))
    run(conn, RUNNING)
    return conn


async def test_the_page_of_nodes_says_what_each_runs_for_how_long(
    seeded: psycopg.Connection, database_url: str
) -> None:
    async with browsing(database_url) as web:
        page = (await web.get("/nodes")).text
        assert f'href="/jobs/nodes/{NODE}"' in page
        assert 'mail_jobs 4</a> <span class="quiet">for 4 min' in page
        assert "and 1 more" in page
        assert all(words in page for words in ("3 h", "1.2", "web-2", "stopped", "bulk"))
        shown = (await web.get("/nodes", headers={"accept": "application/json"})).json()
        assert [job["id"] for job in shown["running"][str(NODE)]] == [4, 3, 2, 1]


async def test_the_page_of_a_node_has_all_that_is_known_of_it(seeded: psycopg.Connection, database_url: str) -> None:
    async with browsing(database_url) as web:
        page = (await web.get(PAGE)).text
        assert "claim refused" in page
        assert "row 9: &lt;no&gt;" in page
        assert page.count('<th scope="row"><a href="/jobs/mail_jobs/') == 4
        assert (await web.get("/nodes/00000000-0000-0000-0000-000000000009")).status_code == 404
        assert (await web.get("/nodes/drop")).status_code == 404


async def test_a_node_is_drained_and_let_claim_again_from_its_page(
    seeded: psycopg.Connection, database_url: str
) -> None:
    async with browsing(database_url, lambda _: User("ann", "operator")) as web:
        page = (await send(web, PAGE, PAGE, do="drain", reason="new <disks>")).text
        assert "web-1:7 claims nothing more" in page
        assert "new &lt;disks&gt;" in page
        assert run(seeded, "SELECT node, reason FROM cluster.drains") == [(NODE, "new <disks>")]
        assert "was told to drain" in (await web.get("/")).text
        assert "Let it claim again" in page
        assert "claims again" in (await send(web, PAGE, PAGE, do="undrain")).text
        assert run(seeded, "SELECT count(*) FROM cluster.drains") == [(0,)]
    lines = "SELECT who, via, action, target FROM cluster.audit ORDER BY id"
    assert run(seeded, lines) == [
        ("ann", "dashboard", "drain", "node web-1:7"),
        ("ann", "dashboard", "undrain", "node web-1:7"),
    ]


async def test_who_may_not_act_is_not_offered_to_drain_and_can_not(
    seeded: psycopg.Connection, database_url: str
) -> None:
    role: Any = "admin"
    async with browsing(database_url, lambda _: User("eve", role)) as web:
        page = (await web.get(PAGE)).text
        stolen = page.split('name="token" value="', 1)[1].split('"', 1)[0]
        role = "viewer"
        assert 'method="post"' not in (await web.get(PAGE)).text
        data = {"token": stolen, "do": "drain"}
        response = await web.post(PAGE, data=data, headers={"sec-fetch-site": "same-origin"})
        assert response.status_code == 403
    assert run(seeded, "SELECT count(*) FROM cluster.drains") == [(0,)]


async def test_a_node_that_has_ended_meanwhile_is_not_drained(seeded: psycopg.Connection, database_url: str) -> None:
    async with browsing(database_url) as web:
        page = (await web.get(PAGE)).text
        data = {"token": page.split('name="token" value="', 1)[1].split('"', 1)[0], "do": "drain"}
        run(seeded, "UPDATE cluster.nodes SET state = 'stopped'")
        response = await web.post(PAGE, data=data, headers={"sec-fetch-site": "same-origin"})
        assert (response.status_code, "has ended" in response.text) == (409, True)
        assert 'method="post"' not in (await web.get(PAGE)).text


async def test_the_audit_says_what_was_done_with_commands(seeded: psycopg.Connection, database_url: str) -> None:
    run(
        seeded,
        "INSERT INTO cluster.audit (who, via, action, target) VALUES ('bob@laptop', 'cli', 'pause', 'mail_jobs')",
    )
    async with browsing(database_url) as web:
        assert 'bob@laptop <span class="quiet">cli</span>' in (await web.get("/audit")).text


async def test_a_job_that_waits_says_for_what_and_one_that_does_not_says_nothing(
    seeded: psycopg.Connection, database_url: str
) -> None:
    run(seeded, "SELECT cluster.pause('mail_jobs'::regclass, '<away>')")
    async with browsing(database_url) as web:
        page = (await web.get("/mail_jobs/5")).text
        assert "What it waits for" in page
        assert page.index("Job type mail_jobs has been paused") < page.index("cluster resume mail_jobs")
        assert "&lt;away&gt;" in page
        assert "What it waits for" not in (await web.get("/mail_jobs/1")).text
        reasons = (await web.get("/mail_jobs/5", headers={"accept": "application/json"})).json()["reasons"]
        assert reasons[0]["reason"] == "type_paused"


async def test_the_line_of_the_overview_about_a_job_that_waits_for_long_leads_to_why(
    seeded: psycopg.Connection, database_url: str
) -> None:
    run(seeded, "UPDATE mail_jobs SET run_at = now() - interval '20 min' WHERE id = 5")
    run(seeded, "INSERT INTO mail_jobs (priority) VALUES (1)")
    async with browsing(database_url) as web:
        assert '<a href="/jobs/mail_jobs/oldest">Why</a>' in (await web.get("/")).text
        response = await web.get("/mail_jobs/oldest")
        assert response.headers["location"] == "/jobs/mail_jobs/5"
        run(seeded, "DELETE FROM mail_jobs WHERE status <> 'running'")
        assert (await web.get("/mail_jobs/oldest")).status_code == 404


async def test_a_table_that_is_locked_keeps_no_page_of_nodes_from_being_shown(
    seeded: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE mail_jobs")
        async with browsing(database_url) as web:
            response: httpx.Response = await web.get("/nodes")
            assert (response.status_code, "web-1" in response.text) == (200, True)
