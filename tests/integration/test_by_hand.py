"""Nodes that people run by hand: `work`, `workoff`, and in the background `start`, `stop` and `restart`. All processes are real."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cluster.cli.start import read_layout
from cluster.migration import migrate_jobs
from cluster.supervisor.run_folder import NodeEntry, Process, RunFolder, State
from tests.integration.conftest import RunNode
from tests.support.nodes import job_classes, session_processes, wait_for, wait_until, write_jobs
from tests.support.terminal import CTRL_C, Terminal

SOURCE = """
import asyncio, os
from datetime import timedelta
from pathlib import Path
import psycopg
from cluster import ConstantBackoff, Fail, Job

MARK = "first"

class ChainJob(Job):
    left: int
    async def perform(self):
        if self.left:
            await asyncio.sleep(0.5)  # meanwhile nothing is due
            async with await psycopg.AsyncConnection.connect(os.environ["CLUSTER_DATABASE_URL"]) as connection:
                await ChainJob(left=self.left - 1).perform_later(connection)

class WrongJob(Job):
    for_good: bool = True
    backoff = ConstantBackoff(timedelta(hours=1))
    async def perform(self):
        if self.for_good:
            return Fail("no")
        raise ValueError("not yet")

class HeldJob(Job):
    max_concurrency = 1
    async def perform(self):
        while not Path("go").exists():
            await asyncio.sleep(0.01)

class MarkJob(Job):
    async def perform(self):
        Path("mark").write_text(MARK)
"""
IMPORTED_FOR_LONG = """
import time
if Path("imported").exists():
    print("imported again", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
Path("imported").touch()
"""
LIVE = "SELECT count(*) = %s FROM cluster.nodes WHERE state = 'live'"
Result = subprocess.CompletedProcess[str]


class App:
    """An application's folder, its tables migrated."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.run_folder = RunFolder(folder)
        self._url = url
        self._sessions: set[int] = set()

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("CLUSTER_", "PG", "DATABASE_URL"))
        }
        return kept | {"CLUSTER_DATABASE_URL": self._url, "CLUSTER_PROCESSES": "1", "COLUMNS": "80"} | variables

    def call(self, *arguments: str, **variables: str) -> Result:
        done = subprocess.run(
            command(*arguments), cwd=self.folder, env=self.environment(**variables), capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        self._note()
        return done

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*arguments), cwd=self.folder, env=self.environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def terminal(self, *arguments: str) -> Terminal:
        return Terminal(command(*arguments), self.folder, self.environment())

    def state(self) -> State:
        state = self.run_folder.read()
        assert state is not None, self.log()
        return state

    def pids(self) -> list[int]:
        """Of the nodes."""
        return sorted(node.process.pid for node in self.state().nodes)

    def processes(self) -> list[int]:
        """Of all supervisors that were started here, with their nodes and workers."""
        self._note()
        return [pid for session in self._sessions for pid in session_processes(session)]

    def log(self) -> str:
        return self.run_folder.log.read_text() if self.run_folder.log.exists() else ""

    def kill_all(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), "all processes are gone")

    def _note(self) -> None:
        """A supervisor leads a session."""
        state = self.run_folder.read()
        if state is not None and state.supervisor.lives:
            self._sessions.add(state.supervisor.pid)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cluster", *arguments]


def error_of(result: Result, code: int) -> str:
    assert (result.returncode, result.stdout) == (code, ""), result
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def app(tmp_path: Path, database_url: str, conn: psycopg.Connection) -> Iterator[App]:
    write_jobs(tmp_path, SOURCE)
    migrate_jobs(conn, job_classes(tmp_path))
    made = App(tmp_path, database_url)
    yield made
    made.kill_all()


@pytest.fixture
def stranger() -> Iterator[int]:
    """Pid of a program that is no node."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        assert process.poll() is None, "it was ended"
        process.kill()


# --- work ---


def test_work_says_how_to_end_it_names_every_job_and_ends_at_ctrl_c(app: App, conn: psycopg.Connection) -> None:
    conn.execute('INSERT INTO chain_jobs ("left") VALUES (0)')
    with app.terminal("work") as terminal:
        terminal.wait_for("job_finished")
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    first, second, *_ = terminal.shown.splitlines()
    assert first == "cluster: a node on all queues. Ctrl-C: finish what runs, then exit;"
    assert second.strip() == "a second Ctrl-C: stop that, and give it back"
    assert "Traceback" not in terminal.shown


def test_ctrl_c_while_workers_start_is_the_nodes_matter_alone(app: App) -> None:
    write_jobs(app.folder, SOURCE + IMPORTED_FOR_LONG)
    with app.terminal("work") as terminal:
        terminal.wait_for("imported again")
        terminal.type(CTRL_C)
        terminal.wait_for("node_draining")
        (app.folder / "go").touch()
        assert terminal.end() == 0
    assert "Traceback" not in terminal.shown


def test_work_ends_with_its_terminal(app: App, conn: psycopg.Connection) -> None:
    with app.terminal("work") as terminal:
        wait_for(conn, LIVE, [1])
        terminal.hang_up()
        assert terminal.end() == 0
    wait_for(conn, "SELECT state = 'stopped' FROM cluster.nodes")


# --- workoff ---


def test_workoff_performs_what_is_due_and_what_that_enqueues_and_leaves_the_rest(
    app: App, conn: psycopg.Connection
) -> None:
    conn.execute('INSERT INTO chain_jobs ("left") VALUES (2), (0)')
    conn.execute("INSERT INTO chain_jobs (\"left\", run_at) VALUES (0, now() + interval '1 hour')")
    conn.execute("INSERT INTO wrong_jobs (for_good) VALUES (false)")
    done = app.call("workoff")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "4 succeeded, 1 to be tried again",
        "left of ChainJob: 1 scheduled",
        "left of WrongJob: 1 to be tried again",
    ]
    assert statuses(conn, "chain_jobs") == ["succeeded"] * 2 + ["scheduled"] + ["succeeded"] * 2


def test_workoff_exits_1_if_some_failed_for_good_and_shows_a_bar_below_the_log(
    app: App, conn: psycopg.Connection
) -> None:
    conn.execute("INSERT INTO wrong_jobs DEFAULT VALUES")
    conn.execute('INSERT INTO chain_jobs ("left") SELECT 0 FROM generate_series(1, 3)')
    with app.terminal("workoff") as terminal:
        assert terminal.end() == 1
    assert terminal.shown.splitlines()[-1] == "3 succeeded, 1 failed for good"
    assert re.search(r"starting +━+", terminal.shown)
    assert re.search(r"^[\d:]+ \[error +\] job_failed", terminal.shown, re.MULTILINE), "the log has lines of its own"


def test_what_is_paused_or_cannot_be_had_does_not_keep_workoff(
    app: App, conn: psycopg.Connection, run_node: RunNode
) -> None:
    run_node(SOURCE, processes=1)
    conn.execute("INSERT INTO held_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM held_jobs")
    conn.execute("SELECT cluster.pause('chain_jobs'::regclass)")
    conn.execute('INSERT INTO chain_jobs ("left") VALUES (0)')
    conn.execute("INSERT INTO held_jobs DEFAULT VALUES")
    done = app.call("workoff")
    assert (done.returncode, done.stdout.splitlines()) == (0, [
        "nothing was due",
        "left of ChainJob: 1 paused",
        "left of HeldJob: 1 that could not be had (the limit of 1 is used up by other ",
        "nodes), 1 that run on other nodes",
    ]), done.stderr  # fmt: skip


def test_ctrl_c_ends_workoff_when_what_runs_has_ended(app: App, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO held_jobs SELECT FROM generate_series(1, 2)")
    process = app.begin("workoff")
    wait_for(conn, "SELECT status = 'running' FROM held_jobs ORDER BY id")
    process.send_signal(signal.SIGINT)
    wait_for(conn, "SELECT state = 'draining' FROM cluster.nodes")
    (app.folder / "go").touch()
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out.splitlines()[0]) == (130, "1 succeeded"), error
    assert statuses(conn, "held_jobs") == ["succeeded", "not_started"]


# --- start, stop, restart ---


def test_nodes_run_in_the_background_are_replaced_when_they_die_and_end_when_their_jobs_have(
    app: App, conn: psycopg.Connection
) -> None:
    started = app.call("start", "-n", "default:1,email:1")
    assert started.returncode == 0, app.log()
    assert started.stdout.splitlines()[0] == "2 nodes run; their log: .cluster/run/log"
    rows = conn.execute("SELECT queues, pid FROM cluster.nodes WHERE state = 'live' ORDER BY queues").fetchall()
    assert [queues for queues, _ in rows] == [["default"], ["email"]]
    assert sorted(pid for _, pid in rows) == app.pids()
    assert "nodes run here already" in error_of(app.call("start"), 1)

    os.kill(rows[0][1], signal.SIGKILL)
    successor = "SELECT count(*) = 1 FROM cluster.nodes WHERE state = 'live' AND queues = '{default}' AND pid <> %s"
    wait_for(conn, successor, [rows[0][1]])
    assert '"event": "supervised_node_ended"' in app.log()

    conn.execute("INSERT INTO held_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM held_jobs")
    stopping = app.begin("stop")
    wait_for(conn, "SELECT count(*) > 0 FROM cluster.nodes WHERE state = 'draining'")
    assert stopping.poll() is None
    (app.folder / "go").touch()
    assert stopping.communicate(timeout=30)[0] == "2 nodes have ended\n"
    assert stopping.returncode == 0
    assert statuses(conn, "held_jobs") == ["succeeded"]
    assert app.processes() == []
    stopped = app.call("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "no nodes run here\n")


def test_of_two_starts_at_once_one_is_refused_and_a_stale_file_is_no_hindrance(
    app: App, conn: psycopg.Connection, stranger: int
) -> None:
    """The file is from before a reboot: its pids are another program's now."""
    before = Process(stranger, "another-boot 1234")
    app.run_folder.make()
    app.run_folder.write(State(before, 1, 5.0, [NodeEntry(before, "", 0)]))
    assert app.call("stop").stdout == "no nodes run here\n"
    both = [app.begin("start") for _ in range(2)]
    outputs = [process.communicate(timeout=40) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], outputs
    assert sum("nodes run here already" in error for _, error in outputs) == 1
    assert conn.execute(LIVE, [1]).fetchone() == (True,)


def test_a_stop_in_the_middle_of_a_restart_lets_jobs_end(app: App, conn: psycopg.Connection) -> None:
    assert app.call("start").returncode == 0
    conn.execute("INSERT INTO held_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM held_jobs")
    restarting = app.begin("restart")
    wait_for(conn, "SELECT array_agg(state ORDER BY state) = '{draining,live}' FROM cluster.nodes")
    stopping = app.begin("stop")
    wait_for(conn, "SELECT array_agg(state ORDER BY state) = '{draining,stopped}' FROM cluster.nodes")
    (app.folder / "go").touch()
    assert stopping.communicate(timeout=30)[0] == "1 node has ended\n"
    assert restarting.communicate(timeout=30)[1] == "cluster: the nodes were stopped meanwhile\n"
    assert (stopping.returncode, restarting.returncode) == (0, 1)
    assert conn.execute("SELECT status, attempts_count FROM held_jobs").fetchone() == ("succeeded", 1)


def test_a_second_stop_makes_nodes_give_back_what_runs(app: App, conn: psycopg.Connection) -> None:
    assert app.call("start", CLUSTER_SHUTDOWN_TIMEOUT="100s").returncode == 0
    conn.execute("INSERT INTO held_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM held_jobs")
    stopping = app.begin("stop")
    wait_for(conn, "SELECT state = 'draining' FROM cluster.nodes")
    assert app.call("stop").returncode == 0
    stopping.communicate(timeout=30)
    assert stopping.returncode == 0
    assert conn.execute("SELECT status, attempts_count FROM held_jobs").fetchone() == ("not_started", 0)


def test_restart_replaces_nodes_by_ones_with_the_new_code_while_jobs_go_on(app: App, conn: psycopg.Connection) -> None:
    assert app.call("start", CLUSTER_SHUTDOWN_TIMEOUT="20s").returncode == 0
    before = app.pids()
    conn.execute("INSERT INTO held_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'running' FROM held_jobs")
    write_jobs(app.folder, SOURCE.replace("first", "second"))
    restarting = app.begin("restart")
    wait_for(conn, "SELECT count(*) = 2 FROM cluster.nodes WHERE state IN ('live', 'draining')")
    wait_for(conn, "SELECT state = 'draining' FROM cluster.nodes WHERE pid = %s", before)
    (app.folder / "go").touch()
    assert restarting.communicate(timeout=30)[0] == "1 node has been replaced\n"
    assert restarting.returncode == 0
    assert not set(before) & set(app.pids())
    assert conn.execute("SELECT status, attempts_count FROM held_jobs").fetchone() == ("succeeded", 1)
    conn.execute("INSERT INTO mark_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT status = 'succeeded' FROM mark_jobs")
    assert (app.folder / "mark").read_text() == "second"


def test_a_node_whose_code_can_not_be_imported_is_told_and_not_tried_again_and_again(
    app: App, conn: psycopg.Connection
) -> None:
    broken = "import nowhere"
    write_jobs(app.folder, broken)
    assert "can't import jobs: ModuleNotFoundError" in error_of(app.call("start", "-n", "2"), 4)
    assert app.processes() == []
    write_jobs(app.folder, SOURCE)
    assert app.call("start").returncode == 0
    before = app.pids()
    write_jobs(app.folder, broken)
    assert "can't import jobs: ModuleNotFoundError" in error_of(app.call("restart"), 4)
    assert (app.pids(), app.state().restart_code) == (before, 4)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: not app.processes(), "the supervisor has ended with its last node")
    assert app.log().count('"event": "supervised_node_ended"') == 2, "of the one that was killed, and of its successor"
    assert app.call("stop").stdout == "no nodes run here\n"


def test_nodes_whose_supervisor_was_killed_are_ended_by_stop(app: App, conn: psycopg.Connection) -> None:
    assert app.call("start").returncode == 0
    os.kill(app.state().supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not app.run_folder.is_locked, "the kernel has let go of the lock")
    for command_ in ("start", "restart"):
        assert "whose supervisor was killed" in error_of(app.call(command_), 1)
    stopped = app.call("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "1 node has ended, whose supervisor was killed before\n")
    assert conn.execute("SELECT state FROM cluster.nodes").fetchone() == ("stopped",)
    assert app.processes() == []


def test_stop_leaves_alone_what_is_no_node(app: App, stranger: int) -> None:
    """By its start time it may be one, by cluster.nodes it is none."""
    process = Process.of(stranger)
    app.run_folder.make()
    app.run_folder.write(State(Process(stranger, "gone"), 1, 0.5, [NodeEntry(process, "", 0)]))
    assert f"processes [{stranger}]" in error_of(app.call("stop"), 1)


def test_a_signal_reaches_a_process_and_not_its_number(stranger: int) -> None:
    process = Process.of(stranger)
    assert process.lives
    assert process.send(signal.SIGCONT)
    other = replace(process, started=f"{process.started}0")
    assert not other.lives
    assert not other.send(signal.SIGKILL)


# --- what is typed ---


@pytest.mark.parametrize(
    ("nodes", "layout"),
    [
        ("2", ["", ""]),
        ("default:2,email:1", ["default", "default", "email"]),
        (" bulk : 1 ", ["bulk"]),
        ("a:b:1", ["a:b"]),
    ],
)
def test_how_many_nodes_and_on_which_queues(nodes: str, layout: list[str]) -> None:
    assert read_layout(nodes) == layout


@pytest.mark.parametrize("nodes", ["", "0", "-1", "x", "a:", "a:0", ":2", "a:1,2", "a:1,,b:1"])
def test_another_number_of_nodes_is_wrong_usage(nodes: str) -> None:
    with pytest.raises(Exception, match="give a number such as 4"):
        read_layout(nodes)


def test_ctrl_c_at_a_prompt_changes_nothing(app: App, conn: psycopg.Connection) -> None:
    conn.execute('INSERT INTO chain_jobs ("left") VALUES (0)')
    with app.terminal("clear", "--all") as terminal:
        terminal.wait_for("delete 1 jobs? [y/N]:")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    assert terminal.shown.splitlines()[-1] == "cluster: nothing was changed"
    assert statuses(conn, "chain_jobs") == ["not_started"]


def statuses(conn: psycopg.Connection[Any], table: str) -> list[str]:
    """In the order of ids."""
    return [status for (status,) in conn.execute(f"SELECT status::text FROM {table} ORDER BY id".encode()).fetchall()]
