"""The server of a project, described by `.cluster/postgres.json` in its directory: where the data is, how to connect.

The data is in `.cluster/postgres`; for root, below the place that `programs` keeps for root.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cluster.embedded.postmaster import read_postmaster, url_of
from cluster.embedded.programs import (
    belongs_to_a_user,
    locked,
    owner_of,
    root_place,
    short_hash,
    write_private,
)
from cluster.embedded.server import EmbeddedPostgres, free_port
from cluster.errors import ClusterError


def project_folder(directory: Path) -> Path:
    """`.cluster/`, made when missing; git leaves it alone."""
    folder = directory.resolve() / ".cluster"
    folder.mkdir(exist_ok=True)
    ignore_file = folder / ".gitignore"
    if not ignore_file.exists():
        ignore_file.write_text("*\n")
    return folder


def project_server(directory: Path, bin_dir: Path | None = None, *, fast: bool = False) -> EmbeddedPostgres:
    """The project's server, whose `.cluster/` is made when missing; not started.

    Listens on TCP, so that every language reaches it.
    """
    folder = project_folder(directory)
    # Two commands at once must not each make up a password.
    with locked(folder / "postgres.json.lock"):
        state = _project_state(folder)
        if state is None:
            state = State(_project_data_dir(folder), free_port(), secrets.token_urlsafe(24))
            state.write(folder)
    return ProjectPostgres(folder, state, bin_dir, fast)


def running_project_url(directory: Path) -> str | None:
    """The URL of the project's server if that is up. Reads three small files, starts nothing, makes no connection."""
    state = _project_state(directory.resolve() / ".cluster")
    if state is None:
        return None
    found = read_postmaster(state.data_dir)
    return url_of(found, state.password, "postgres") if found and found.ready else None


class ProjectPostgres(EmbeddedPostgres):
    """Remembers in the state file the port that it has listened on last."""

    def __init__(self, folder: Path, state: State, bin_dir: Path | None, fast: bool) -> None:
        super().__init__(state.data_dir, bin_dir, port=state.port, password=state.password, fast=fast)
        self._folder = folder

    def start(self) -> bool:
        """As EmbeddedPostgres.start."""
        started = super().start()
        if started and self.port is not None:
            State(self.data_dir, self.port, self.password).write(self._folder)
        return started


@dataclass(frozen=True)
class State:
    """`.cluster/postgres.json`. Holds a password: mode 0600."""

    data_dir: Path
    port: int
    password: str

    def write(self, folder: Path) -> None:
        """Replaced as a whole: readers take no lock."""
        values = {"data_dir": str(self.data_dir), "port": self.port, "password": self.password}
        write_private(folder / "postgres.json", json.dumps(values, indent=2) + "\n", owner_of(folder))


def _project_state(folder: Path) -> State | None:
    """None before the first start, and in a copy: a copied project must not share the server of the original."""
    path = folder / "postgres.json"
    try:
        values = json.loads(path.read_text())
        state = State(Path(values["data_dir"]), int(values["port"]), str(values["password"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise ClusterError(f"{path} belongs to another user: run as that user, or remove {folder}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{path} is damaged: remove it") from error
    return state if state.data_dir == _project_data_dir(folder) else None


def _project_data_dir(folder: Path) -> Path:
    if os.geteuid() != 0 or belongs_to_a_user(folder / "postgres"):
        return folder / "postgres"
    return root_place() / "data" / short_hash(str(folder.parent))
