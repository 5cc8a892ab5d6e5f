"""Debian in a folder or an archive, and the project's wheels: what the tests of the units and of the image run on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
PYTHON = "3.11"
"""That of the suite."""

_KEPT = ROOT / "build" / "debian"
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def require(packages: dict[str, str]) -> None:
    """Fails unless root runs this, and all programs are there. packages: Debian's package of each program."""
    if os.geteuid() != 0:
        pytest.fail("This needs root.", pytrace=False)
    missing = sorted({package for program, package in packages.items() if shutil.which(program) is None})
    if missing:
        pytest.fail(f"Programs are missing: apt install --no-install-recommends {' '.join(missing)}", pytrace=False)


def archive(*packages: str) -> Path:
    """A tar of Debian with these packages. It is made once, in a minute or three, and kept until `make clean`."""
    name = hashlib.sha256(" ".join([SUITE, *packages, *_LEFT_OUT]).encode()).hexdigest()[:16]
    kept = _KEPT / f"{name}.tar"
    if not kept.exists():
        _KEPT.mkdir(parents=True, exist_ok=True)
        made = kept.with_suffix(".part.tar")
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *options, SUITE, made)
        made.rename(kept)
    return kept


def wheels(folder: Path, *others: str) -> Path:
    """Fills a folder with wheels for Debian's Python: the project as it is, other distributions, and what they all need."""
    pip = (sys.executable, "-m", "pip", "--quiet")
    folder.mkdir()
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (own,) = folder.glob("jobcluster-*.whl")
    only = ("--python-version", PYTHON, "--only-binary", ":all:")
    run(*pip, "download", *only, "--dest", folder, f"{own}[dashboard]", *others, cwd=folder)
    return folder


def run(*command: str | Path, **options: str | Path | dict[str, str]) -> str:
    """What it printed. AssertionError: it failed; the message has all that it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    said: str = done.stdout
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{said}{done.stderr}"
    return said
