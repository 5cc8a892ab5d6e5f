"""The command line. Worker processes import this module anew, as the console script's: it loads nothing by itself."""

from __future__ import annotations

import signal
import sys

from cluster.errors import Terminated


def main() -> None:
    """The console scripts `cluster` and `jobcluster`, and `python -m cluster`. Ends with 130 at Ctrl-C, 143 at SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)  # process 1 of a container has no default: it would be lost
    try:
        from cluster.cli.app import app

        app(prog_name="cluster")
    except Terminated:
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)


def _terminate(*_: object) -> None:
    raise Terminated
