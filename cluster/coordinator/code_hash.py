"""Which job code a node runs: so that people see from when on it was another."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from cluster.job import Job

LENGTH = 12
FOREIGN = frozenset({"site-packages", "dist-packages"})


def code_hash(job_classes: Iterable[type[Job]], app_dir: Path) -> str:
    """Of the files of all modules that were imported from app_dir, or from a package of a job class, as they are."""
    packages = {job_class.__module__.partition(".")[0] for job_class in job_classes} - {"__main__"}
    found = hashlib.sha256()
    for name, file in sorted((name, Path(file)) for name, file in _files().items()):
        is_own = file.is_relative_to(app_dir) and FOREIGN.isdisjoint(file.relative_to(app_dir).parts)
        if is_own or name.partition(".")[0] in packages:
            try:
                found.update(name.encode() + b"\0" + file.read_bytes())
            except OSError:  # in an archive, or gone
                continue
    return found.hexdigest()[:LENGTH]


def _files() -> dict[str, str]:
    """Of the modules that have one."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {name: file for name, file in files.items() if isinstance(file, str)}
