"""Machines with the project's units; these tests run only when asked for, with `-m systemd`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import debian
from tests.systemd.machine import APP, Machine, install, running

PROGRAMS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux"}
JOBS = """
import asyncio
import os
from cluster import Fail, Job

class EchoJob(Job):
    '''Tells which code it is.'''
    async def perform(self):
        return Fail("old code")

class WorkJob(Job):
    seconds: float
    async def perform(self):
        await asyncio.sleep(self.seconds)
"""
ROLES = """
CREATE ROLE migrates LOGIN PASSWORD 'm-secret';
CREATE ROLE node LOGIN PASSWORD 'n-secret';
"""
GRANTS = """
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cluster TO node;
REVOKE INSERT, UPDATE, DELETE ON cluster.migrations FROM node;
GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO node;
"""


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The files of a machine that was set up by the book: units, two roles, secrets, jobs, migrated tables. Its node never ran."""
    debian.require(PROGRAMS)
    folder = tmp_path_factory.mktemp("systemd")
    bare = folder / "bare"
    bare.mkdir()
    install(bare, debian.wheels(folder / "wheels"))
    with running([bare], folder / "set-up") as machine:
        _set_up(machine)
        machine.run("systemctl stop postgresql@15-main")
    return folder / "set-up" / "upper", bare


@pytest.fixture
def machine(layers: tuple[Path, ...], tmp_path: Path) -> Iterator[Machine]:
    """One of this test's own, booted; its node does not run yet."""
    with running(layers, tmp_path) as machine:
        yield machine


@pytest.fixture
def database(machine: Machine) -> Iterator[psycopg.Connection[Any]]:
    """As its superuser."""
    with machine.connect() as connection:
        yield connection


def _set_up(machine: Machine) -> None:
    with machine.connect("postgres") as connection:
        connection.execute(ROLES)
        connection.execute("CREATE DATABASE jobs OWNER migrates ENCODING 'UTF8' TEMPLATE template0")
    machine.write(f"{APP}/jobs/__init__.py", JOBS)
    # Jobs of a node that was killed wait for its lease; a short one saves the tests a minute.
    machine.write("etc/jobcluster/default.env", "CLUSTER_LEASE=9s\nCLUSTER_HEARTBEAT_INTERVAL=2s\n")
    machine.write("etc/jobcluster/migrate.database-url", "postgresql://migrates:m-secret@127.0.0.1/jobs\n")
    machine.write("etc/jobcluster/default.database-url", "postgresql://node:n-secret@127.0.0.1/jobs\n")
    machine.run("systemctl start jobcluster-migrate")
    with machine.connect() as connection:
        connection.execute(GRANTS)
