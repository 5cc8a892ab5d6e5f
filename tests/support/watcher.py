"""Ends the Postgres of a test run when the process at the other end of standard input has gone."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.postgres import RunServer


def main(folder: str, bin_dir: str | None = None) -> None:
    """Wait for the end of the run, however it comes."""
    sys.stdin.buffer.read()
    if Path(folder).exists():
        RunServer(Path(folder), Path(bin_dir) if bin_dir else None).end()


if __name__ == "__main__":
    main(*sys.argv[1:])
