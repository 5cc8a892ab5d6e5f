"""What commands show while they wait for the nodes of `cluster start`, and how they tell that one could not start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.errors import ClusterError, ExitCode

if TYPE_CHECKING:
    from cluster.supervisor.run_folder import RunFolder


@contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal, gone in the end; gives a function that changes it. Elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(text) as status:
        yield status.update


def failure_of(code: int, folder: RunFolder, log_begin: int) -> ClusterError:
    """Of a node, with its exit code. Its own words are the last line of the log that is for people, from this place on."""
    with folder.log.open("rb") as log:
        log.seek(log_begin)
        lines = log.read().decode(errors="replace").splitlines()
    own = [line.removeprefix("cluster: ") for line in lines if line.startswith("cluster: ")]
    error = ClusterError(own[-1] if own else f"a node ended with exit code {code}: see .cluster/run/log")
    error.exit_code = ExitCode(code) if code in list(ExitCode) else ExitCode.ERROR
    return error
