"""Where log lines go when their reader has stopped: nowhere. A node must not wait for whoever reads its log.

A pipe that nobody empties is full after 64 kB, and a plain write then waits for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

PATIENCE = 1.0
"""Seconds that a process waits for a reader in all, until that has read on."""
PIPE_SIZE = 2**20
_CHUNK = 32 * 1024
_MILLISECONDS = 1000


class DroppingHandler(logging.StreamHandler[TextIO]):
    """Writes to a file, terminal, pipe or socket; what finds no room is counted, and the next line that does says so."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._writer = _writer_of(stream)
        self._rest = b""
        """Of a line that has begun. The next one comes after it."""
        self._dropped = 0
        self._patience = PATIENCE

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line, or drops it. Called with the handler's lock held."""
        if self._writer is None:
            super().emit(record)
            return
        try:
            line = self.format(record)
            if self._dropped and self._write(self.format(_notice(self._dropped))):
                self._dropped = 0
            if self._dropped or not self._write(line):
                self._dropped += 1
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as logging's own handlers: a line must not end what logs it
            self.handleError(record)

    def close(self) -> None:
        """Gives back what it has opened itself. Lines that come later go the plain way."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        super().close()

    def _write(self, line: str) -> bool:
        """False: there is no room for it. A line that has begun counts as written."""
        if self._rest:
            self._rest = self._send(self._rest)
            if self._rest:
                return False
        data = f"{line}\n".encode(errors="backslashreplace")
        rest = self._send(data)
        if len(rest) == len(data):
            return False
        self._rest = rest
        return True

    def _send(self, data: bytes) -> bytes:
        """What is left of it once the patience is used up. A reader that is gone has taken everything."""
        assert self._writer is not None
        try:
            while data:
                sent = self._writer.write(data)
                data = data[sent:]
                if sent:
                    self._patience = PATIENCE
                elif not self._wait():
                    break
        except OSError:
            return b""
        return data

    def _wait(self) -> bool:
        """Whether there is room, or may be: the time for that is not used up."""
        assert self._writer is not None
        if self._patience <= 0:
            return False
        began = time.monotonic()
        poll = select.poll()
        poll.register(self._writer.descriptor, select.POLLOUT)
        poll.poll(self._patience * _MILLISECONDS)
        self._patience -= max(0.001, time.monotonic() - began)  # others may take the room each time
        return True


class _Writer(NamedTuple):
    """write: takes what finds room of some bytes and says how many, 0: none; it never waits. close: what it has opened itself."""

    descriptor: int
    write: Callable[[bytes], int]
    close: Callable[[], None] = lambda: None


def _writer_of(stream: TextIO) -> _Writer | None:
    """None: it is in memory."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) and hasattr(os, "splice"):
        pipe = _Pipe(descriptor)
        return _Writer(descriptor, pipe.write, pipe.close)
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(descriptor))
        return _Writer(descriptor, lambda data: _send_now(connection, data), connection.close)
    if stat.S_ISREG(mode):
        return _Writer(descriptor, lambda data: os.write(descriptor, data))
    return _Writer(descriptor, lambda data: _write_if_ready(descriptor, data))


class _Pipe:
    """Writes into somebody's pipe without waiting, through one of its own: O_NONBLOCK would be set for all who share that."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._own = (-1, -1)
        self._owner = 0
        with contextlib.suppress(OSError):  # each line takes a place in it
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def write(self, data: bytes) -> int:
        if self._owner != os.getpid():  # a fork shares the one before
            self._own = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._owner = os.getpid()
        reading, writing = self._own
        given = left = os.write(writing, data[:_CHUNK])
        try:
            while left:
                left -= os.splice(reading, self._descriptor, left, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            pass
        finally:
            if left:
                os.read(reading, left)
        return given - left

    def close(self) -> None:
        if self._owner == os.getpid():
            for own in self._own:
                os.close(own)
            self._owner = 0


def _send_now(connection: socket.socket, data: bytes) -> int:
    """To journald, say."""
    with contextlib.suppress(BlockingIOError):
        return connection.send(data, socket.MSG_DONTWAIT)
    return 0


def _write_if_ready(descriptor: int, data: bytes) -> int:
    """To a terminal, which may have been stopped with Ctrl-S."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return os.write(descriptor, data[:_CHUNK]) if poll.poll(0) else 0


def _notice(dropped: int) -> logging.LogRecord:
    record = logging.LogRecord("cluster.logs", logging.WARNING, __file__, 0, "log_lines_dropped", None, None)
    record.count = dropped
    record.hint = "whoever reads this log had stopped"
    return record
