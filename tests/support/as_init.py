"""Running a program as process 1, as in a container."""

from __future__ import annotations

import shutil
import subprocess

AS_INIT = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""In front of a command."""
POSSIBLE = shutil.which("unshare") is not None and not subprocess.call([*AS_INIT, "true"], stderr=subprocess.DEVNULL)
