"""`python -m cluster.supervisor LOCK LAYOUT`, as `cluster start` calls it: a descriptor that has the lock, and queues as JSON.

One line on stdout for each node that is ready, at the start; then that is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from cluster.logs import configure_logs
from cluster.settings import load_settings
from cluster.supervisor.run_folder import RunFolder
from cluster.supervisor.supervisor import Supervisor

STDOUT = 1


async def _supervise(layout: list[str]) -> int:
    settings = load_settings()
    configure_logs(settings.log_format, settings.log_level)
    left, nowhere = len(layout), os.open(os.devnull, os.O_WRONLY)

    def ready() -> None:
        nonlocal left
        left -= 1
        with suppress(OSError):  # nobody listens any more
            os.write(STDOUT, b"ready\n")
        if not left:
            os.dup2(nowhere, STDOUT)

    return await Supervisor(RunFolder(Path.cwd()), layout, settings, ready).run()


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)  # the nodes must not keep the lock
    sys.exit(asyncio.run(_supervise(json.loads(sys.argv[2]))))
