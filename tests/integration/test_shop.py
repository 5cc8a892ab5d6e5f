"""The example with a job for each way in which a schedule goes on, as its README starts it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import run

SHOP = Path(__file__).parents[2] / "examples" / "shop"


def test_the_five_jobs_of_the_shop(
    conn: psycopg.Connection, run_node: RunNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute((SHOP / "schema.sql").read_bytes())
    monkeypatch.setenv("SHOP_CONFIG", (SHOP / "config.json").as_uri())
    modules = {path.stem: path.read_text() for path in (SHOP / "jobs").glob("*.py")}
    run_node(modules)
    assert run(conn, "SELECT name, state FROM cluster.schedules ORDER BY name") == [
        ("CheckBlenderJob", "active"), ("CheckStockJob", "active"), ("EndSpecialsJob", "active"), ("JanuaryReportJob", "active"),
        ("LoadConfigJob", "run_once_waiting"),
    ]  # fmt: skip
    conn.execute("DELETE FROM products WHERE type = 'blender'")
    conn.execute("UPDATE cluster.schedules SET next_due_at = now(), next_run_at = now()")
    wait_for(conn, "SELECT bool_and(last_outcome IS NOT NULL) FROM cluster.schedules")
    today = datetime.now(UTC)
    in_january = today.astimezone(ZoneInfo("Europe/Berlin")).month == 1
    assert dict(run(conn, "SELECT name, state FROM cluster.schedules")) == {
        "CheckBlenderJob": "deactivated", "CheckStockJob": "active", "EndSpecialsJob": "sleeping",
        "JanuaryReportJob": "sleeping" if in_january else "stopped", "LoadConfigJob": "run_once_done",
    }  # fmt: skip
    assert run(conn, "SELECT type FROM products WHERE out_of_stock") == [("Red Bikes",)]
    assert run(conn, "SELECT no_specials FROM shop_status") == [(today.weekday() == 6,)]
    assert run(conn, "SELECT count(*) FROM mails") == [(int(in_january),)]
    assert run(conn, "SELECT value ->> 'currency' FROM config") == [("EUR",)]
