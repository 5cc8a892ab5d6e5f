"""Real nodes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.nodes import NodeProcess, Source, running_node


class RunNode(Protocol):
    """setup: SQL to run once the tables are there, before the node starts. role, url: the node's. settings: as in `Settings`."""

    def __call__(
        self, source: Source, *, setup: str = "", role: str = "postgres", url: str = "", **settings: object
    ) -> NodeProcess: ...


@pytest.fixture
def run_node(database_url: str, tmp_path: Path) -> Iterator[RunNode]:
    """Starts nodes on this test's database; they are ready when it returns, and gone after the test."""
    numbers = count(1)
    with ExitStack() as nodes:

        def run(
            source: Source, *, setup: str = "", role: str = "postgres", url: str = "", **settings: object
        ) -> NodeProcess:
            folder = tmp_path / f"app-{next(numbers)}"
            node_url = url or database_url.replace("//postgres@", f"//{role}@")
            node = running_node(database_url, folder, source, setup=setup, node_url=node_url, **settings)
            return nodes.enter_context(node)

        yield run
