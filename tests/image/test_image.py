"""The image that the project ships, built and run."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cluster import __version__
from tests.image.containers import Engine
from tests.support import debian
from tests.support.nodes import free_port, wait_for, wait_until

pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

PROGRAMS = {"mmdebstrap": "mmdebstrap", "buildah": "buildah", "podman": "podman", "runc": "runc"}
IMAGE = "jobcluster:test"
SHOP = "shop-jobs:test"
READY_WITHIN = 20  # seconds; 2 to 3 on a busy machine with two CPUs
SIZE = 100 * 2**20  # bytes on top of the base
JOBS = """
import asyncio
from cluster import Job

class WorkJob(Job):
    seconds: float = 0
    async def perform(self):
        await asyncio.sleep(self.seconds)
"""
# As the pods of the manifests: nothing of the root can be written, no capability is left.
CONFINED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges")
LOOK = """
import importlib.metadata, json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
places = [folder for folder, _, _ in os.walk("/") if os.access(folder, os.W_OK) and not folder.startswith("/proc")]
programs = {file for folder in os.environ["PATH"].split(":") if os.path.isdir(folder) for file in os.listdir(folder)}
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "capabilities": int(status["CapEff"], 16),
    "writable": [place for place in places if os.stat(place).st_dev == os.stat("/").st_dev],
    "programs": sorted(programs),
    "distributions": {found.name: found.version for found in importlib.metadata.distributions()},
}))
"""


class RunNode(Protocol):
    """options: podman's. Returns the container's id and the port of its probes."""

    def __call__(self, *options: str) -> tuple[str, int]: ...


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hatchling builds the project, cyclonedx-bom its bill of materials."""
    debian.require(PROGRAMS)
    return debian.wheels(tmp_path_factory.mktemp("image") / "wheels", "hatchling", "cyclonedx-bom>=7")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Engine]:
    """With the project's image, and one with jobs on top of it, as the documentation makes it."""
    folder = tmp_path_factory.mktemp("engine")
    made = Engine(folder)
    made.build_node(IMAGE, wheels)
    (folder / "shop" / "jobs").mkdir(parents=True)
    (folder / "shop" / "jobs" / "__init__.py").write_text(JOBS)
    (folder / "shop" / "Containerfile").write_text(f"FROM localhost/{IMAGE}\nCOPY jobs /app/jobs\n")
    made.build(SHOP, folder / "shop" / "Containerfile", folder / "shop")
    yield made
    made.podman("image", "prune", "--force")  # those of earlier runs, whose names are taken


@pytest.fixture
def run_node(engine: Engine, database_url: str, tmp_path: Path) -> Iterator[RunNode]:
    """Migrates and runs nodes, with the database's URL in a file, as a secret is mounted."""
    socket = str(conninfo_to_dict(database_url)["host"])
    for path in (Path(socket), *Path(socket).glob(".s.PGSQL.*[0-9]")):
        path.chmod(0o777)  # the container's user is another one
    secret = tmp_path / "url"
    secret.write_text(database_url)
    volumes = ("--volume", f"{socket}:{socket}", "--volume", f"{secret}:/etc/url:ro")
    given = (*CONFINED, *volumes, "--network", "host", "--env", "CLUSTER_DATABASE_URL_FILE=/etc/url")
    engine.podman("run", "--rm", *given, f"localhost/{SHOP}", "migrate")
    with ExitStack() as containers:

        def run(*options: str) -> tuple[str, int]:
            port = free_port()
            settings = ("--env", f"CLUSTER_HTTP_PORT={port}", "--env", "CLUSTER_HTTP_HOST=127.0.0.1")
            running = engine.container(*given, *settings, *options, f"localhost/{SHOP}")
            return containers.enter_context(running), port

        yield run


@pytest.fixture(scope="session")
def inside(engine: Engine) -> dict[str, Any]:
    """What a program sees in a container of the image."""
    look = ("--entrypoint", "/opt/venv/bin/python", f"localhost/{IMAGE}", "-c", LOOK)
    seen: dict[str, Any] = json.loads(engine.podman("run", "--rm", "--network", "none", *CONFINED, *look))
    return seen


# --- what is in it ---


def test_it_is_small(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    base = engine.describe(engine.build_base().removeprefix("localhost/"))["Size"]
    own = engine.describe(IMAGE)["Size"] - base
    with capsys.disabled():
        print(f"\nthe image: {own / 1e6:.0f} MB, on a base of {base / 1e6:.0f} MB")
    assert own < SIZE


def test_programs_in_it_are_nobody_and_can_write_nowhere(inside: dict[str, Any]) -> None:
    assert inside["user"] == [10001, 10001]
    assert inside["capabilities"] == 0
    assert inside["writable"] == []


def test_there_is_no_compiler_in_it(inside: dict[str, Any]) -> None:
    compilers = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|clang|tcc|as|ld|make|rustc|cargo|go)(-[\d.]+)?")
    assert [name for name in inside["programs"] if compilers.fullmatch(name)] == []
    assert "jobcluster" in inside["programs"]


def test_labels_say_what_it_is(engine: Engine) -> None:
    labels = engine.describe(IMAGE)["Labels"]
    said = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert said.keys() >= {"title", "description", "licenses", "version", "revision"}
    assert (said["title"], said["version"], said["licenses"]) == ("jobcluster", __version__, "MIT")


def test_the_bill_of_materials_names_every_distribution(engine: Engine, inside: dict[str, Any]) -> None:
    show = ("--entrypoint", "cat", f"localhost/{IMAGE}", "/usr/share/sbom/jobcluster.cdx.json")
    bill = json.loads(engine.podman("run", "--rm", "--network", "none", *show))
    assert bill["bomFormat"] == "CycloneDX"
    named = {canonical(part["name"]): part["version"] for part in bill["components"]}
    assert named == {canonical(name): version for name, version in inside["distributions"].items()}
    assert all(part["purl"].startswith("pkg:pypi/") and part["licenses"] for part in bill["components"])
    assert {entry["ref"] for entry in bill["dependencies"]} >= {part["bom-ref"] for part in bill["components"]}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_same_wheels_give_the_same_image(engine: Engine, wheels: Path) -> None:
    """To the last bit: the id is the hash of the configuration, and it has those of the layers."""
    engine.build_node("jobcluster:again", wheels, "--no-cache")
    assert engine.describe("jobcluster:again")["Id"] == engine.describe(IMAGE)["Id"]


# --- what it does ---


def test_a_node_is_ready_soon_works_and_drains(
    engine: Engine, run_node: RunNode, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    container, port = run_node("--memory", "512m")
    own = wait_until(lambda: probe(port) == 200, "the node is ready", READY_WITHIN)
    with capsys.disabled():
        print(f"\nready {time.monotonic() - begun:.1f} s after `podman run`, {own:.1f} s after the container ran")
    conn.execute("INSERT INTO work_jobs (seconds) VALUES (0), (2)")
    wait_for(conn, "SELECT count(*) = 1 FROM work_jobs WHERE status = 'succeeded'")
    wait_for(conn, "SELECT count(*) = 1 FROM work_jobs WHERE status = 'running'")
    engine.podman("stop", "--time", "30", container)
    assert conn.execute("SELECT DISTINCT status::text, attempts_count FROM work_jobs").fetchall() == [("succeeded", 1)]
    assert engine.podman("inspect", "--format", "{{.State.ExitCode}}", container).strip() == "0"
    assert conn.execute("SELECT state::text FROM cluster.nodes").fetchall() == [("stopped",)]


@pytest.mark.parametrize(
    ("limits", "workers"),
    [(("--cpus=0.5", "--memory=1g"), 1), (("--cpus=1.5", "--memory=1g"), 2), (("--cpus=2", "--memory=300m"), 1)],
)
def test_workers_are_as_many_as_its_cpus_and_its_memory_allow(
    run_node: RunNode, conn: psycopg.Connection, limits: tuple[str, ...], workers: int
) -> None:
    run_node(*limits, "--env", "CLUSTER_CONCURRENCY=1")
    expected = min(workers, os.cpu_count() or 1)
    wait_for(conn, "SELECT slots = %s FROM cluster.nodes WHERE state = 'live'", [expected])  # they come up one by one


def probe(port: int) -> int:
    """The status of /readyz; 0: nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
