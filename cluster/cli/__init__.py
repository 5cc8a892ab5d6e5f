"""The command line. Worker processes import this module anew, as the console script's: it loads nothing by itself."""

from __future__ import annotations

import sys


def main() -> None:
    """The console scripts `cluster` and `jobcluster`, and `python -m cluster`."""
    try:
        from cluster.cli.app import app

        app(prog_name="cluster")
    except KeyboardInterrupt:
        sys.exit(130)
