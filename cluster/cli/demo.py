"""`cluster demo`: the newsletter example, which lies beside the package in a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

from cluster.errors import ClusterError


def demo() -> None:
    """See a cluster at work, on a Postgres of its own."""
    import cluster

    folders = (Path(cluster.__file__).parents[1], Path.cwd())
    folder = next((folder for folder in folders if (folder / "examples/newsletter/demo.py").is_file()), None)
    if folder is None:
        raise ClusterError("the demo is not part of the installed package: run it in a checkout of jobcluster")
    sys.path.insert(0, str(folder))
    raise typer.Exit(importlib.import_module("examples.newsletter.demo").main())
