"""The processes of `cluster dev`: migrates and restarts the node when job code changes, and ends everything together.

Job code is only ever imported by the children, so that each of them sees it as it is now.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import typer

from cluster.errors import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_FOR_THE_APP = 10
SECONDS_FOR_THE_NODE = 60
SECONDS_TO_FILL_A_FOLDER = 0.5
ADDED = 1  # watchfiles.Change.added; watchfiles is imported only where it is there
SKIPPED_FOLDERS = frozenset({"tests", "__pycache__", "node_modules", "site-packages", "venv"})


class DevSession:
    """Owns the processes of the node, the dashboard and the app; all are started and ended here only.

    has_dashboard: it is installed.
    """

    def __init__(self, command: list[str], app_dir: Path, *, has_dashboard: bool) -> None:
        self.has_dashboard = has_dashboard
        self._command = command
        self._app_dir = app_dir.resolve()
        self._environment: dict[str, str] = {}
        self._signal: int | None = None
        self._code = 0
        self._node: Process | None = None
        self._ending: Process | None = None
        """The node that was told to end: its end is no news."""
        self._dashboard: Process | None = None
        self._app: Process | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- before and after the loop, too ---

    @contextmanager
    def signals_noted(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM only set the stop, so that a Postgres which is just starting is stopped again as well."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        """The second signal makes the node give its jobs back instead of finishing them."""
        first, self._signal = self._signal is None, number
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set if first else self._hurry)

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked for the end."""
        return self._signal is not None

    def say(self, text: str) -> None:
        """A line to the developer. The terminal may have been closed."""
        with suppress(OSError):
            typer.echo(f"cluster: {text}")

    # --- the session ---

    async def run(self, environment: Mapping[str, str]) -> int:
        """Until a signal, or the end of the app, whose exit code it returns."""
        self._environment = dict(environment)
        # Both a file and the URL would be a contradiction.
        self._environment.pop("CLUSTER_DATABASE_URL_FILE", None)
        self._loop = asyncio.get_running_loop()
        if self.interrupted:
            return 0
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(self._watch()), tasks.create_task(self._keep_node(tasks))]
            await self._stop.wait()
            for loop in loops:
                loop.cancel()
            await asyncio.wait(loops)
            await self._end_all()
        return self._code

    async def _watch(self) -> None:
        from watchfiles import awatch

        async for changes in awatch(self._app_dir, watch_filter=self._is_watched, ignore_permission_denied=True):
            paths = {Path(path) for _, path in changes}
            folders = {path for path in paths if path.is_dir()}
            if folders:
                await asyncio.sleep(SECONDS_TO_FILL_A_FOLDER)
            code = (paths - folders) | {path for folder in folders for path in folder.rglob("*.py")}
            names = sorted(str(path.relative_to(self._app_dir)) for path in code)
            if names:
                self.say(f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} changed")
                self._changed.set()

    async def _keep_node(self, tasks: asyncio.TaskGroup) -> None:
        """A node of the newest code that can be imported; while there is none, the one before goes on."""
        while True:
            self._changed.clear()
            if await self._migrate() == 0:
                await self._end_node()
                self._node = await self._start(sys.executable, "-m", "cluster", "run")
                tasks.create_task(self._follow_node(self._node))
            elif not self._changed.is_set():
                self.say("waiting for a change")
            if self.has_dashboard and self._dashboard is None:
                self._dashboard = await self._start(sys.executable, "-m", "cluster", "dashboard")
                tasks.create_task(self._follow_dashboard(self._dashboard))
            if self._command and self._app is None:
                # Now that the tables are there.
                tasks.create_task(self._run_app())
            await self._changed.wait()

    async def _migrate(self) -> int:
        """In a process of its own: it imports job code. Its exit code; what went wrong it has said itself."""
        migration = await self._start(sys.executable, "-m", "cluster", "migrate")
        try:
            return await migration.wait()
        finally:
            await _end(migration, SECONDS_FOR_THE_APP)

    async def _follow_node(self, node: Process) -> None:
        code = await node.wait()
        if self._ending is not node:
            self._node = None
            self.say(f"the node ended with exit code {code}: waiting for a change")

    async def _follow_dashboard(self, dashboard: Process) -> None:
        """It needs no job code, so it stays as it is when that changes; without it, all else goes on."""
        code = await dashboard.wait()
        if not self._stop.is_set():
            self.say(f"the dashboard ended with exit code {code}: it comes back with the next start")

    async def _run_app(self) -> None:
        try:
            # In the terminal's process group, unlike the node: it may read what is typed.
            self._app = await asyncio.create_subprocess_exec(*self._command, env=self._environment)
        except OSError as error:
            typer.echo(f"cluster: can't run {self._command[0]}: {error.strerror}", err=True)
            self._code = ExitCode.ERROR
        else:
            code = await self._app.wait()
            if self._stop.is_set():
                return
            self._code = code if code >= 0 else 128 - code
            self.say(f"{self._command[0]} ended with exit code {self._code}")
        self._stop.set()

    # --- the end ---

    async def _end_all(self) -> None:
        if self._app is not None:
            await self._end_app(self._app)
        if self._dashboard is not None:
            await _end(self._dashboard, SECONDS_FOR_THE_APP)
        await self._end_node()

    async def _end_app(self, app: Process) -> None:
        """A Ctrl-C has reached it already, and a second signal would cut it short."""
        if self._signal == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            with suppress(TimeoutError):
                await asyncio.wait_for(app.wait(), SECONDS_FOR_THE_APP)
        await _end(app, SECONDS_FOR_THE_APP)

    async def _end_node(self) -> None:
        """If this is cancelled, the node is still ours to end."""
        node, self._ending = self._node, self._node
        if node is not None:
            await _end(node, SECONDS_FOR_THE_NODE)
            self._node = None

    def _hurry(self) -> None:
        for process in (self._node, self._app):
            if process is not None and process.returncode is None:
                process.terminate()

    async def _start(self, *command: str) -> Process:
        """Out of the terminal's process group: a Ctrl-C would count as a second signal beside ours."""
        return await asyncio.create_subprocess_exec(
            *command, env=self._environment, stdin=DEVNULL, start_new_session=True
        )

    def _is_watched(self, change: int, path: str) -> bool:
        """Python files, and new folders, whose first files may have been there before they were watched."""
        relative = Path(path).relative_to(self._app_dir)
        if not all(map(_is_application_folder, relative.parts)):
            return False
        return relative.suffix == ".py" or (change == ADDED and Path(path).is_dir())


def _is_application_folder(name: str) -> bool:
    return not name.startswith(".") and name not in SKIPPED_FOLDERS


async def _end(process: Process, seconds: float) -> None:
    """SIGTERM, and SIGKILL for one that does not end within these seconds."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
