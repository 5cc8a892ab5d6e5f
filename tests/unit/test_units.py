"""The units of systemd: what can be said of them without one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.cli.app import app
from cluster.settings import SECRETS, load_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
NODE = "jobcluster@.service"
FROM, TO = "NoNewPrivileges=yes", "SystemCallErrorNumber=EPERM"


def lines_of(unit: str) -> list[str]:
    return (FOLDER / unit).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("unit", UNITS)
def test_each_unit_is_confined_as_a_node_is(unit: str) -> None:
    ours, nodes = lines_of(unit), lines_of(NODE)
    assert ours[ours.index(FROM) : ours.index(TO)] == nodes[nodes.index(FROM) : nodes.index(TO)]
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    (start,) = [line.split() for line in ours if line.startswith("ExecStart=")]
    assert start[0] == "ExecStart=/opt/jobcluster/bin/jobcluster"
    assert start[1] in commands
    credentials = {line.partition("=")[2].partition(":")[0] for line in ours if line.startswith("LoadCredential=")}
    assert credentials <= {f"cluster_{name}" for name in SECRETS}


def test_an_installation_has_a_password_that_nobody_knows_and_keeps_it(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        environment = os.environ | {"DESTDIR": str(tmp_path)}
        subprocess.run([FOLDER / "install.sh"], env=environment, capture_output=True, check=True)
        found.append(
            {
                file: (tmp_path / "etc/jobcluster" / file).read_text()
                for file in ("dashboard.password", "dashboard.secret")
            }
        )
    assert found[0] == found[1]
    password, secret = found[0].values()
    assert len(password) == len(secret) == 48
    assert password != secret
    for name in (*found[0], "dashboard.database-url"):
        assert (tmp_path / "etc/jobcluster" / name).stat().st_mode & 0o077 == 0
    settings = load_settings({"CREDENTIALS_DIRECTORY": str(tmp_path), "CLUSTER_DASHBOARD_SECRET": secret})
    assert settings.dashboard_secret == secret
