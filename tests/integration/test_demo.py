"""The demo of the README, and `make observe`: they hold what they show, notice if not, and leave nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.nodes import free_port, wait_until
from tests.support.postgres import make_run_folder
from tests.support.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
SMALL = ("--mails", "45", "--photos", "6", "--timeout", "40")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@contextmanager
def demo(temp_folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo with its files below temp_folder, and an end to it however the test ends."""
    with started(temp_folder, "demo", *SMALL, *options) as process:
        yield process


@contextmanager
def started(temp_folder: Path, module: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The same of a module of the newsletter."""
    environment = os.environ | {"TMPDIR": str(temp_folder), "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"examples.newsletter.{module}", *options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture
def temp_folder() -> Iterator[Path]:
    """Directly in the temp folder, so that the server's user, which is not ours when we are root, can pass."""
    folder = make_run_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(temp_folder: Path) -> list[str]:
    """What is known of the living processes whose command line or environment names this folder."""
    if Path("/proc/self").exists():
        found = [_text(folder / "cmdline") + _text(folder / "environ") for folder in Path("/proc").glob("[0-9]*")]
    else:
        found = subprocess.run(["ps", "axeww"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [text for text in found if str(temp_folder) in text]


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # it has gone, or is somebody else's
        return ""


def test_the_demo_delivers_what_it_shows(temp_folder: Path) -> None:
    with demo(temp_folder) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "every job succeeded: 52 of 52" in output
    assert "45 expected, 45 received, 0 missing, 0 twice" in output
    assert "12 refused, 12 retries" in output
    assert "every photo has its thumbnail: 6 of 6" in output
    assert "exit codes 0, 0; 0 jobs left running" in " ".join(output.split())
    assert "All 7 checks hold" in output
    assert re.search(r"^Dashboard +http://127.0.0.1:\d+/jobs/ while this runs$", output, re.MULTILINE)
    assert output.splitlines()[-1].endswith("make observe")
    assert max(map(len, output.splitlines())) <= 80
    assert list(temp_folder.iterdir()) == []
    assert processes_of(temp_folder) == []


def test_the_demo_fails_when_a_mail_is_lost(temp_folder: Path) -> None:
    with demo(temp_folder, "--lose", "1") as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "FAILED  every mail arrived, once: 45 expected, 44 received, 1 missing, 0 twice" in output
    assert "1 of 7 checks failed" in output


@pytest.mark.parametrize("moment", ["A newsletter", "Postgres", "Mail server", "Two nodes", "Two nodes share"])
def test_ctrl_c_ends_every_process_of_the_demo(temp_folder: Path, moment: str) -> None:
    with demo(temp_folder) as process:
        assert process.stdout is not None
        output = ""
        while not (line := process.stdout.readline()).startswith(moment):
            assert line, output
            output += line
        # As a terminal does: to every process in the foreground.
        os.killpg(process.pid, signal.SIGINT)
        output += process.stdout.read()
        process.wait(60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert processes_of(temp_folder) == []
    assert list(temp_folder.iterdir()) == []


@pytest.mark.needs("prometheus")
def test_a_prometheus_observes_the_demo_until_ctrl_c(temp_folder: Path) -> None:
    port = free_port()
    with started(temp_folder, "observe", "--prometheus-port", str(port)) as process:
        assert process.stdout is not None
        output = ""
        while not (line := process.stdout.readline()).startswith("Mails, photos"):
            assert line, output
            output += line
        (dashboard,) = re.findall(r"^dashboard: +(\S+)$", output, re.MULTILINE)
        with urllib.request.urlopen(dashboard, timeout=20) as page:
            assert "EmailCustomersJob" in page.read().decode()
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        assert f"PROMETHEUS_URL='{prometheus.url}'" in output
        wait_until(lambda: len(prometheus.now("up == 1")) == 2, "both nodes are scraped")
        wait_until(lambda: bool(prometheus.now("sum(cluster_jobs_finished_total) > 0")), "jobs have ended")
        assert prometheus.ask("rules")["groups"]
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert processes_of(temp_folder) == []
    assert list(temp_folder.iterdir()) == []
