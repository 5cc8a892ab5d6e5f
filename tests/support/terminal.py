"""A command on a terminal of 80 columns, as a person has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

CTRL_C = b"\x03"
_DRAWN_ANEW = re.compile(r"\r\x1b\[2K")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """Leads its session, so that Ctrl-C and the end of the terminal reach it."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._shown = b""
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - it takes no locks
        )  # fmt: skip
        os.close(theirs)

    @property
    def shown(self) -> str:
        """All that it has written so far, without control sequences. A line that is drawn anew is another line."""
        return _CONTROL.sub("", _DRAWN_ANEW.sub("\n", self._shown.decode(errors="replace")))

    def wait_for(self, text: str, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} does not come: {self.shown}"
            assert self._read(), f"it has ended without {text!r}: {self.shown}"

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def hang_up(self) -> None:
        """The terminal is closed."""
        os.close(self._ours)
        self._ours = -1

    def end(self, timeout: float = 20) -> int:
        """Reads until it ends. The exit code."""
        deadline = time.monotonic() + timeout
        while self._ours >= 0 and self._read():
            assert time.monotonic() < deadline, f"it does not end: {self.shown}"
        return self.process.wait(timeout)

    def _read(self) -> bool:
        """Waits a moment for more. False: there will be none."""
        if select.select([self._ours], [], [], 0.1)[0]:
            try:
                self._shown += os.read(self._ours, 2**16)
            except OSError:  # as Linux tells that nobody has the other end any more
                return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._ours >= 0:
            self.hang_up()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
