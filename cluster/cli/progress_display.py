"""How far `cluster workoff` is: a bar below the log lines on a terminal, else a line now and then.

A thread draws. The node's loop only leaves its progress here: it must not wait for a terminal that was stopped.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from cluster.coordinator.workoff import Progress

REDRAW = 0.1
LINE_INTERVAL = 10.0
"""Seconds between two lines where there is no terminal."""
STDERR = 2


class ProgressDisplay:
    """On a terminal all that is written to stderr, by workers too, comes through a pipe, and stands above the bar."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        """The last that was told. Written by the node's loop, read by the thread."""
        self._told_at = time.monotonic()
        self._terminal = -1
        """What stderr was; -1: no terminal."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, progress: Progress) -> None:
        """For `run_node`."""
        self.progress = progress
        if self._thread is None and progress.left and time.monotonic() >= self._told_at + LINE_INTERVAL:
            self._told_at = time.monotonic()
            typer.echo(f"cluster: {_done(progress):,} done, {_due(progress):,} left, {progress.running:,} run")

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():
            reading, writing = os.pipe()
            self._terminal = os.dup(STDERR)
            os.dup2(writing, STDERR)
            os.close(writing)
            self._thread = threading.Thread(target=self._draw, args=(reading,), name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            os.dup2(self._terminal, STDERR)
            self._ended.set()
            self._thread.join()

    # --- the thread ---

    def _draw(self, reading: int) -> None:
        """Lines as they come, and the bar below them."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        os.set_blocking(reading, False)
        with (
            os.fdopen(self._terminal, "w", errors="replace") as terminal,
            suppress(OSError),  # the terminal was closed: the node goes on until its signal
        ):
            console = Console(file=terminal, force_terminal=True, highlight=False)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            bar = Progress(*columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False,
                           redirect_stderr=False)  # fmt: skip
            bar.add_task("starting", total=None)
            with bar:
                while not self._ended.is_set():
                    select.select([reading], [], [], REDRAW)
                    self._show(bar, console, _read(reading))
                self._show(bar, console, _read(reading))
        os.close(reading)

    def _show(self, bar: Bar, console: Console, text: str) -> None:
        from rich.text import Text

        if text:
            console.print(Text(text.removesuffix("\n")), soft_wrap=True)
        progress = self.progress
        if progress is not None and progress.left:
            done = _done(progress)
            total = done + max(_due(progress), progress.running)
            bar.update(bar.tasks[0].id, description=f"{progress.running:,} run", completed=done, total=total)
        bar.refresh()


def _read(descriptor: int) -> str:
    """What is there, whole lines as far as possible."""
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 2**16):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _done(progress: Progress) -> int:
    return progress.ended.total() - progress.ended["released"]


def _due(progress: Progress) -> int:
    return sum(left.due for left in progress.left)
