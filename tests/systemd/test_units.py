"""The units that the project ships, under a real systemd."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.debian import ROOT
from tests.support.nodes import wait_for, wait_until
from tests.systemd.conftest import JOBS
from tests.systemd.machine import APP, NODE, Machine

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

Database = psycopg.Connection[Any]
START = f"systemctl start {NODE}"
RIGHTS = """
import os
from pathlib import Path
from cluster import Fail, Job

class RightsJob(Job):
    def perform(self):
        Path("/tmp/own").write_text("jobs may write here")
        places = ("/etc", "/opt/jobcluster/app", "/var/lib", "/run", "/dev/shm")
        status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        secrets = [name for name, value in os.environ.items() if "n-secret" in value]
        others = [name for name in os.listdir("/proc") if name.isdecimal() and Path("/proc", name).stat().st_uid == 0]
        return Fail(repr({
            "root": os.getuid() == 0,
            "writable": [place for place in places if os.access(place, os.W_OK)],
            "capabilities": int(status["CapEff"], 16),
            "may gain": status["NoNewPrivs"] != "1",
            "filtered": status["Seccomp"] == "2",
            "secrets": secrets,
            "others": others,
        }))
"""
WRITES = """(
    f'written to {sum(os.access(path, os.W_OK) for path in ("/var/lib/jobcluster", "/srv/reports", "/etc"))}, '
    f'others to be seen: {os.path.exists("/proc/1/stat")}'
)"""


# --- its life ---


def test_start_returns_when_the_node_may_claim(machine: Machine, database: Database) -> None:
    machine.run(START)
    assert machine.probe() == 200
    assert machine.state() == "active/running"
    wait_for(database, "SELECT state = 'live' FROM cluster.nodes")
    machine.wait(lambda: machine.show("StatusText").endswith("may claim"), "the status line says what it does")


def test_a_node_that_still_imports_its_jobs_is_not_ready(machine: Machine) -> None:
    gate = machine.root / APP / "gate"
    os.mkfifo(gate)
    machine.write(f"{APP}/jobs/__init__.py", f"open('/{APP}/gate').read()\n{JOBS}")
    machine.run(f"systemctl start --no-block {NODE}")
    with gate.open("w"):  # returns when the node stands at the gate
        assert machine.state() == "activating/start"
        machine.write(f"{APP}/jobs/__init__.py", JOBS)
    machine.wait_state("active/running")


def test_a_stop_under_load_loses_no_job_and_ends_well(machine: Machine, database: Database) -> None:
    machine.run(START)
    work(database, jobs=400, seconds=0.2)
    wait_for(database, "SELECT count(*) > 20 FROM work_jobs WHERE status = 'succeeded'")
    machine.run(f"systemctl stop {NODE}")
    assert (machine.state(), machine.show("Result"), machine.show("ExecMainStatus")) == (
        "inactive/dead",
        "success",
        "0",
    )
    found = dict(database.execute("SELECT status::text, count(*) FROM work_jobs GROUP BY 1").fetchall())
    assert found.keys() == {"succeeded", "not_started"}, "it was stopped at work, and handed back what it had not begun"
    machine.run(START)
    wait_for(database, "SELECT count(*) = 400 FROM work_jobs WHERE status = 'succeeded' AND attempts_count = 1")


def test_a_node_that_crashes_is_started_again_and_its_jobs_go_on(machine: Machine, database: Database) -> None:
    machine.run(START)
    crashed = machine.pid()
    work(database, jobs=2, seconds=1)
    wait_for(database, "SELECT count(*) = 2 FROM work_jobs WHERE status = 'running'")
    machine.run(f"kill -KILL {crashed}")
    machine.wait(lambda: machine.show("NRestarts") == "1", "it is started again")
    machine.wait_state("active/running")
    assert machine.pid() != crashed
    wait_for(database, "SELECT count(*) = 2 FROM work_jobs WHERE status = 'succeeded'", timeout=60)


def test_a_node_that_stands_still_is_ended_by_the_watchdog_and_its_jobs_go_on(
    machine: Machine, database: Database
) -> None:
    """The unit as it is, but for a shorter deadline."""
    machine.write("etc/systemd/system/jobcluster@.service.d/soon.conf", "[Service]\nWatchdogSec=4\n")
    machine.run("systemctl daemon-reload")
    machine.run(START)
    work(database, jobs=2, seconds=1)
    wait_for(database, "SELECT count(*) = 2 FROM work_jobs WHERE status = 'running'")
    machine.run(f"kill -STOP {machine.pid()}")
    machine.wait(lambda: machine.show("NRestarts") == "1", "it is ended and started again")
    machine.wait_state("active/running")
    said = machine.journal()
    assert "Watchdog timeout (limit 4s)!" in said
    assert "Fatal Python error: Aborted" in said
    wait_for(database, "SELECT count(*) = 2 FROM work_jobs WHERE status = 'succeeded'", timeout=60)


def test_after_a_reboot_the_node_is_back_and_finishes_the_jobs(machine: Machine) -> None:
    start_at_boot_and_work(machine)
    machine.reboot()
    assert finished_by_a_second_node(machine) == 1, "systemd lets a node drain before it stops Postgres"


def test_after_a_power_cut_the_node_is_back_and_finishes_the_jobs(machine: Machine) -> None:
    start_at_boot_and_work(machine)
    machine.destroy()
    machine.boot()
    assert finished_by_a_second_node(machine) == 2, "what ran is lost and begun anew"


def start_at_boot_and_work(machine: Machine) -> None:
    machine.run(f"systemctl enable --now {NODE}")
    with machine.connect() as database:
        work(database, jobs=300, seconds=0.5)
        wait_for(database, "SELECT count(*) > 0 FROM work_jobs WHERE status = 'succeeded'")


def finished_by_a_second_node(machine: Machine) -> int:
    """The attempts that a job needed at most."""
    machine.wait_state("active/running")
    with machine.connect() as database:
        wait_for(database, "SELECT count(*) = 300 FROM work_jobs WHERE status = 'succeeded'", timeout=90)
        later = "started_at > (SELECT max(started_at) FROM cluster.nodes)"
        row = database.execute(f"SELECT count(*) FILTER (WHERE {later}), max(attempts_count) FROM work_jobs").fetchone()
    assert row
    assert row[0] > 0
    return int(row[1])


# --- new code ---


def test_a_reload_takes_over_new_code(machine: Machine, database: Database) -> None:
    machine.run(START)
    node = machine.pid()
    assert echo(database) == "old code"
    machine.write(f"{APP}/jobs/__init__.py", JOBS.replace("old code", "new code"))
    machine.run(f"systemctl reload {NODE}")
    wait_until(lambda: echo(database) == "new code", "new code runs")
    assert machine.pid() == node


def test_a_reload_of_code_that_does_not_import_is_told_and_the_old_goes_on(
    machine: Machine, database: Database
) -> None:
    machine.run(START)
    machine.write(f"{APP}/jobs/__init__.py", "import nothing_of_the_kind\n")
    machine.run(f"systemctl reload {NODE}")
    reason = "the newest code can't be used: can't import jobs: ModuleNotFoundError"
    machine.wait(lambda: reason in machine.show("StatusText"), "the status line says so")
    machine.wait_state("active/running")
    assert reason in machine.run(f"systemctl status {NODE}")
    assert echo(database) == "old code"


# --- what is wrong ---


@pytest.mark.parametrize(
    ("file", "text", "code", "reason"),
    [
        ("etc/jobcluster/default.env", "CLUSTER_CONCURRENCY=many\n", 2, "CLUSTER_CONCURRENCY"),
        (f"{APP}/jobs/__init__.py", "import nothing_of_the_kind\n", 4, "nothing_of_the_kind"),
        (f"{APP}/jobs/__init__.py", JOBS + "class NewJob(WorkJob): pass\n", 5, "new_jobs"),
    ],
    ids=["settings", "jobs", "schema"],
)
def test_a_node_that_wants_a_person_is_not_started_again(
    machine: Machine, file: str, text: str, code: int, reason: str
) -> None:
    machine.write(file, text)
    assert machine.attempt(START) != 0
    assert (machine.state(), machine.show("Result")) == ("failed/failed", "exit-code")
    assert (machine.show("ExecMainStatus"), machine.show("NRestarts")) == (str(code), "0")
    assert reason in machine.journal()


def test_a_node_that_lacks_its_database_is_up_soon_after_it(machine: Machine) -> None:
    machine.run("systemctl stop postgresql@15-main")
    assert machine.attempt(START) != 0
    assert machine.show("ExecMainStatus") == "3"
    machine.wait_state("activating/auto-restart")
    machine.run("systemctl start postgresql@15-main")
    machine.wait_state("active/running")


# --- the installation ---


def test_jobs_have_no_rights_and_see_no_secret(machine: Machine, database: Database) -> None:
    machine.write(f"{APP}/jobs/__init__.py", RIGHTS)
    machine.run("systemctl start jobcluster-migrate")
    database.execute("GRANT SELECT, UPDATE, DELETE ON rights_jobs TO node")
    machine.run(START)
    database.execute("INSERT INTO rights_jobs DEFAULT VALUES")
    told = wait_for(database, "SELECT last_error FROM rights_jobs WHERE status = 'failed'")
    expected = {
        "root": False,
        "writable": ["/dev/shm"],
        "capabilities": 0,
        "may gain": False,
        "filtered": True,
        "secrets": [],
        "others": [],
    }
    assert told == repr(expected)
    assert machine.attempt("test -e /tmp/own") == 1, "its /tmp is its own"


def test_the_installation_can_be_repeated_on_a_running_machine(machine: Machine) -> None:
    machine.run(START)
    node = machine.pid()
    shutil.copytree(ROOT / "deploy/systemd", machine.root / "root/deploy")
    machine.run("/root/deploy/install.sh")
    assert machine.pid() == node
    assert machine.run("stat --format=%U:%G:%a /etc/jobcluster").strip() == "root:jobcluster:750"
    assert "n-secret" in Path(machine.root, "etc/jobcluster/default.database-url").read_text()
    machine.run(f"systemctl restart {NODE}")


def test_a_second_node_of_the_machine_serves_another_queue(machine: Machine, database: Database) -> None:
    machine.run("cp /etc/jobcluster/default.env /etc/jobcluster/mail.env")
    machine.run("cp -p /etc/jobcluster/default.database-url /etc/jobcluster/mail.database-url")
    machine.write("etc/jobcluster/mail.env", "CLUSTER_QUEUES=mail\nCLUSTER_HTTP_PORT=9465\nCLUSTER_PROCESSES=1\n")
    machine.run(f"systemctl start {NODE} jobcluster@mail")
    served = database.execute("SELECT queues FROM cluster.nodes WHERE state = 'live' ORDER BY slots").fetchall()
    assert served == [(["mail"],), (["*"],)]
    for unit in (NODE, "jobcluster@mail"):
        assert machine.show("ControlGroup", unit).startswith("/jobcluster.slice/")


def test_jobs_may_do_more_where_the_example_is_followed(machine: Machine, database: Database) -> None:
    """All of it at once."""
    example = (machine.root / "etc/jobcluster/relax.conf.example").read_text()
    allowed = re.sub(r"^#(?=\w+=)", "", example, flags=re.MULTILINE)
    assert "\nStateDirectory=" in allowed
    machine.write("etc/systemd/system/jobcluster@.service.d/relax.conf", allowed)
    machine.write("srv/reports/readme", "")
    machine.run("chown jobcluster /srv/reports")
    machine.write(f"{APP}/jobs/__init__.py", JOBS.replace('"old code"', WRITES))
    machine.run("systemctl daemon-reload")
    machine.run(START)
    assert "Unknown" not in machine.run("journalctl --no-pager --boot --output=cat _PID=1")
    assert echo(database) == "written to 2, others to be seen: True"


# --- the dashboard ---


def test_the_dashboard_lets_in_its_operator_alone_and_acts_as_a_role_of_its_own(
    machine: Machine, database: Database
) -> None:
    database.execute("CREATE ROLE operates LOGIN PASSWORD 'o-secret'; GRANT USAGE ON SCHEMA cluster TO operates")
    database.execute("GRANT SELECT ON ALL TABLES IN SCHEMA cluster, public TO operates")
    machine.write("etc/jobcluster/dashboard.database-url", "postgresql://operates:o-secret@127.0.0.1/jobs\n")
    machine.run("systemctl start jobcluster-dashboard")
    page = "http://127.0.0.1:8080/jobs/"

    def answer(*given: str) -> int:
        code = (
            "import sys, base64, urllib.request, urllib.error\n"
            "request = urllib.request.Request(sys.argv[1])\n"
            "for pair in sys.argv[2:]:\n"
            "    request.add_header('Authorization', 'Basic ' + base64.b64encode(pair.encode()).decode())\n"
            "try: print(urllib.request.urlopen(request, timeout=20).status)\n"
            "except urllib.error.HTTPError as error: print(error.code)\n"
            "except OSError: print(0)\n"
        )
        return int(machine.run(f"python3 -c {shlex.quote(code)} {page} {' '.join(map(shlex.quote, given))}"))

    password = (machine.root / "etc/jobcluster/dashboard.password").read_text()
    machine.wait(lambda: answer() == 401, "it answers")
    assert answer(f"operator:{password}") == 200
    assert answer("operator:wrong") == 401
    users = database.execute(
        "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'cluster dashboard'"
    )
    assert users.fetchall() == [("operates",)]
    seen = machine.run(f"ps -o user= -p {machine.show('MainPID', 'jobcluster-dashboard')}")
    assert seen.startswith("jobclus")
    machine.run("systemctl stop jobcluster-dashboard")
    assert machine.show("Result", "jobcluster-dashboard") == "success"


# --- jobs ---


def work(database: Database, jobs: int, seconds: float) -> None:
    database.execute("INSERT INTO work_jobs (seconds) SELECT %s FROM generate_series(1, %s)", (seconds, jobs))


def echo(database: Database) -> str:
    """Which code a job runs that begins now."""
    row = database.execute("INSERT INTO echo_jobs DEFAULT VALUES RETURNING id").fetchone()
    assert row
    told: str = wait_for(database, "SELECT last_error FROM echo_jobs WHERE id = %s AND status = 'failed'", row)
    return told
