"""What the guide to Coronium's jobs promises holds here: a test for each sentence, in this module or where the list says.

* Code runs periodically, as close to its interval as possible: test_schedule_fires, an_interval_of_a_second_fires_on_its_grid….
* The section Jobs lists them, with status and last run time: the_list_of_jobs_has_status_and_last_run_time.
* Creating one, with help and validation feedback: test_schedule_rows, what_could_not_fire_is_refused_when_it_is_saved; editing, and
  removing after a confirmation: test_schedule_cli, add_edit_and_remove.
* Run Once runs one time on the booting, after its initial interval, and not on a reload: run_once_will_only_run_one_time…, and
  test_schedule_outcomes, stop_and_run_once_last_until_the_cluster_starts_anew.
* A reload after adding or editing is not needed: test_schedule_fires, … a_row_takes_effect_within_a_second. While one runs the
  status says so: test_schedule_cli, reload_… is_seen_while_it_runs. Jobs keep their remaining time: a_job_of_120_seconds….
* The status icons: the_status_icons_are_in_the_listing.
* A critical error deactivates a job until it is reactivated: test_schedule_fires, a_job_that_fails_for_good…; a_reload_alone….
  So does a job file that cannot be found: a_job_whose_class_no_node_has….
* job.OK, SLEEP, STOP, EXIT, and no valid return: test_schedule_outcomes, job_returns_determine…, sleep_runs_again_24_hours….
* Helpers for minute, hour, day and so on: test_schedule_code, a_job_of_a_schedule_knows_the_time_there.
* Edited code is used without a reload: by nodes that are replaced, and by `cluster dev`, test_reload.
* The five examples: test_shop.
"""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from cluster import Every, Job
from cluster.cli.app import app
from cluster.coordinator.prune import Pruner
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles
from cluster.migration import migrate_jobs
from cluster.schedule_rows import reload_schedules
from tests.integration.conftest import RunNode
from tests.support.nodes import wait_for
from tests.support.rows import run


class CheckStockJob(Job):
    schedule = Every(seconds=120)

    async def perform(self) -> None: ...


ONCE = """
import asyncio
from cluster import Every, Job

class LoadConfigJob(Job):
    schedule = Every(seconds=1, run_once=True, overlap="allow", misfire="all")
    async def perform(self):
        await asyncio.sleep(1.5)  # its interval comes again while it runs
        return self.OK
"""


def listed(url: str, *words: str) -> str:
    result = CliRunner().invoke(app, ["schedule", "list", *words], env={"CLUSTER_DATABASE_URL": url, "COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def states(conn: psycopg.Connection) -> dict[str, str]:
    return dict(run(conn, "SELECT name, state FROM cluster.schedules"))


@pytest.fixture
def stock(conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> psycopg.Connection:
    """With the schedule of CheckStockJob."""
    monkeypatch.chdir(tmp_path)
    migrate_jobs(conn, [CheckStockJob])
    return conn


def test_the_list_of_jobs_has_status_and_last_run_time(stock: psycopg.Connection, database_url: str) -> None:
    stock.execute("SELECT cluster.run_schedule('CheckStockJob')")
    (found,) = json.loads(listed(database_url, "--json"))
    assert (found["name"], found["state"]) == ("CheckStockJob", "active")
    assert run(stock, "SELECT last_run_at = %s FROM cluster.schedules", found["last_run_at"]) == [(True,)]


def test_run_once_will_only_run_one_time_after_its_initial_interval_and_not_again_on_a_reload(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(ONCE)
    wait_for(conn, "SELECT state = 'run_once_done' FROM cluster.schedules")
    query = "SELECT due_at - created_at >= interval '1 s', outcome FROM cluster.schedule_runs, cluster.schedules"
    assert run(conn, query) == [(True, "succeeded")]
    reload_schedules(conn, [])
    assert run(conn, "SELECT state, wake_at FROM cluster.schedules") == [("run_once_done", None)]


def test_a_job_of_120_seconds_that_is_reloaded_at_60_retains_its_remaining_60(stock: psycopg.Connection) -> None:
    stock.execute(
        "UPDATE cluster.schedules SET next_due_at = now() + interval '60 s', next_run_at = now() + interval '60 s'"
    )
    before = run(stock, "SELECT next_run_at, wake_at FROM cluster.schedules")
    assert reload_schedules(stock, [CheckStockJob]) == (0, 0)
    assert run(stock, "SELECT next_run_at, wake_at FROM cluster.schedules") == before


ICONS = {
    "active": "✔", "sleeping": "⌛", "stopped": "⟳", "deactivated": "⊘", "run_once_waiting": "⏳", "run_once_done": "☕",
}  # fmt: skip


def test_the_status_icons_are_in_the_listing(stock: psycopg.Connection, database_url: str) -> None:
    for state in ICONS:
        stock.execute(
            "INSERT INTO cluster.schedules (name, job_table, every, run_once) VALUES (%s, 'check_stock_jobs', '1 day', %s)",
            [state, state.startswith("run_once")],
        )
        stock.execute("UPDATE cluster.schedules SET state = %s WHERE name = %s", [state, state])
    lines = listed(database_url).splitlines()
    shown = {
        name: icon
        for name in ICONS
        for icon in ICONS.values()
        if any(icon in line and name in line.split() for line in lines)
    }
    assert shown == ICONS


def test_a_reload_alone_does_not_let_a_deactivated_job_run_again(stock: psycopg.Connection) -> None:
    stock.execute("UPDATE cluster.schedules SET state = 'deactivated', last_error = 'no stock'")
    reload_schedules(stock, [CheckStockJob])
    assert run(stock, "SELECT state, active, last_error, wake_at FROM cluster.schedules") == [
        ("deactivated", False, "no stock", None)
    ]
    stock.execute("UPDATE cluster.schedules SET active = true")
    assert run(stock, "SELECT state, last_error, wake_at IS NOT NULL FROM cluster.schedules") == [
        ("active", None, True)
    ]


async def test_a_job_whose_class_no_node_has_is_deactivated_once_it_has_waited_for_a_day(
    stock: psycopg.Connection, database_url: str
) -> None:
    stock.execute("""
        INSERT INTO cluster.schedules (name, job_table, every, on_error) VALUES ('kept', 'check_stock_jobs', '1 day', 'keep');
        SELECT cluster.create_job_table('served_jobs');
        INSERT INTO cluster.schedules (name, job_table, every)
            VALUES ('served', 'served_jobs', '1 day'), ('young', 'check_stock_jobs', '1 day');
        INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, slots, lease_until)
            SELECT gen_random_uuid(), 'here', 1, '0.1.0', '{}', ARRAY[name], 1, now() + interval '1 hour'
            FROM cluster.job_types WHERE job_table = 'served_jobs'::regclass;
        SELECT cluster.run_schedule(name) FROM cluster.schedules;
        UPDATE cluster.schedule_runs SET fired_at = now() - interval '25 hours' WHERE name <> 'young'
        """)
    session = Session(lambda: database_url, "finish")
    await Pruner(session, Troubles(), 60).tick()
    await session.close()
    assert states(stock) == {"CheckStockJob": "deactivated", "kept": "active", "served": "active", "young": "active"}
    assert run(stock, "SELECT last_error FROM cluster.schedules WHERE name = 'CheckStockJob'") == [
        ("its job has waited for a day, and no live node has a class for check_stock_jobs",)
    ]
