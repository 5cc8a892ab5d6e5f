"""Buildah and Podman with a store of their own, which works as root without systemd and without the right to raise limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import debian

PACKAGES = ("python3-venv", "python3-pip", "ca-certificates")
"""Of the base image: what stands in for python:3.11-slim-bookworm where no registry can be reached."""

_STORE = debian.ROOT / "build" / "containers"
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
# No index: the same wheels in every build.
_PIP_CONF = "[global]\nno-index = true\nfind-links = /given/wheels\n"


class Engine:
    """folder: for what does not outlive the test run. The images stay in build/containers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = ("--root", f"{_STORE}/images", "--runroot", f"{_STORE}/run", "--storage-driver", "overlay")
        configuration = folder / "containers.conf"
        configuration.write_text(_CONTAINERS_CONF)
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}

    def build(self, tag: str, containerfile: Path, context: Path, *options: str) -> None:
        command = ("bud", "--isolation", "chroot", "--timestamp", "1700000000", *options)
        self._buildah(*command, "--tag", f"localhost/{tag}", "--file", str(containerfile), str(context))

    def build_base(self) -> str:
        """The name of an image with Debian's Python; it is made once."""
        archive = debian.archive(*PACKAGES)
        name = f"localhost/base:{archive.stem}"
        if name not in self._buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
            containerfile = self._folder / "Base"
            containerfile.write_text(f"FROM scratch\nADD {archive.name} /\n")
            self.build(name.removeprefix("localhost/"), containerfile, archive.parent)
        return name

    def build_node(self, tag: str, wheels: Path, *options: str) -> None:
        """The project's image, from these wheels alone."""
        pip = self._folder / "pip.conf"
        pip.write_text(_PIP_CONF)
        volumes = ("--volume", f"{wheels}:/given/wheels:ro", "--volume", f"{pip}:/etc/pip.conf:ro")
        deploy = debian.ROOT / "deploy"
        ignore = ("--ignorefile", str(deploy / "Containerfile.dockerignore"))
        base = ("--build-arg", f"BASE={self.build_base()}")
        self.build(tag, deploy / "Containerfile", debian.ROOT, *volumes, *ignore, *base, *options)

    def describe(self, tag: str) -> dict[str, Any]:
        """The image as JSON."""
        described: list[dict[str, Any]] = json.loads(self.podman("image", "inspect", f"localhost/{tag}"))
        return described[0]

    def podman(self, *command: str) -> str:
        return debian.run("podman", *self._store, "--cgroup-manager", "cgroupfs", *command, env=self._environment)

    @contextmanager
    def container(self, *command: str) -> Iterator[str]:
        """One that runs; its id."""
        container = self.podman("run", "--detach", *command).strip()
        try:
            yield container
        finally:
            self.podman("rm", "--force", "--time", "0", container)

    def _buildah(self, *command: str) -> str:
        return debian.run("buildah", *self._store, *command, env=self._environment)
