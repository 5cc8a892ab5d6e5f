"""Which job code a node has: nodes with the same sources have the same identity, so a deploy can be told from a restart.

Of all modules of the user's that are loaded once the job modules are imported, and of the packages that these are in. Reads files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from cluster.fingerprint import is_library

LENGTH = 8
"""Hexadecimal digits."""


def code_identity(job_modules: Iterable[str], loaded: dict[str, ModuleType] | None = None) -> str:
    """job_modules: names of the modules that job classes are in. loaded: by name; None: all of this process."""
    modules = sys.modules if loaded is None else loaded
    packages = {name.partition(".")[0] for name in job_modules}
    digest = hashlib.blake2b(digest_size=LENGTH // 2)
    for name in sorted(modules):
        path = getattr(modules[name], "__file__", None)
        if path and path.endswith(".py") and (name.partition(".")[0] in packages or not is_library(path)):
            digest.update(name.encode("utf-8", "replace"))
            digest.update(_read(path))
    return digest.hexdigest()


def _read(path: str) -> bytes:
    """Nothing, of a file that is gone: what is loaded stays loaded."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
