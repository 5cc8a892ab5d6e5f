"""Lines that find no room are dropped and counted; those that find some come whole, and in order."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from cluster import log_stream
from cluster.log_stream import DroppingHandler


class Way(NamedTuple):
    """To a reader: what the handler writes to, and how everything that has come is read once that is closed."""

    stream: TextIO
    read: Callable[[], bytes]


@pytest.fixture(params=["pipe", "socket", "file"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    if request.param == "file":
        path = tmp_path / "log"
        with path.open("w") as stream:
            yield Way(stream, path.read_bytes)
        return
    if request.param == "pipe":
        reading, writing = os.pipe()
    else:
        ends = socket.socketpair()
        reading, writing = (end.detach() for end in ends)
    with open(reading, "rb") as reader, open(writing, "w") as stream:  # noqa: PTH123 - descriptors
        yield Way(stream, reader.read)


def write(handler: logging.Handler, text: str) -> None:
    handler.handle(logging.LogRecord("a", logging.INFO, "f", 1, text, None, None))


def test_lines_come_whole_and_in_order_while_somebody_reads(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "PATIENCE", 30)
    lines = [f"{number} " + "é" * (number * 37 % 9000) for number in range(2000)]
    came: list[bytes] = []
    reader = threading.Thread(target=lambda: came.append(way.read()))
    if isinstance(way.stream.name, int):  # else a file, which is read when it is whole
        reader.start()
    handler = DroppingHandler(way.stream)
    for line in lines:
        write(handler, line)
    handler.close()
    way.stream.close()
    if reader.ident is None:
        came.append(way.read())
    else:
        reader.join()
    assert came[0].decode().splitlines() == lines


def test_a_reader_that_stops_costs_lines_and_is_told_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "PATIENCE", 0.05)
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w") as stream:  # noqa: PTH123 - descriptors
        handler = DroppingHandler(stream)
        for number in range(3000):
            write(handler, f"{number} " + "x" * 1000)
        came: list[bytes] = []
        thread = threading.Thread(target=lambda: came.append(reader.read()))
        thread.start()
        written = 3000
        while handler._dropped:  # until the reader has made room
            write(handler, f"{written}")
            written += 1
        write(handler, "last")
        handler.close()
        stream.close()
        thread.join()
    lines = came[0].decode().splitlines()
    kept = [int(line.split()[0]) for line in lines if line[0].isdecimal()]
    assert kept == sorted(kept)
    assert all(line.endswith("x" * 1000) for line in lines if line[0].isdecimal() and int(line.split()[0]) < 3000)
    assert lines.count("log_lines_dropped") == 1
    assert lines[-1] == "last"
    assert 0 < len(kept) < 3000


def test_a_reader_that_is_gone_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:  # noqa: PTH123 - a descriptor
        write(DroppingHandler(stream), "nobody")
    assert capsys.readouterr().err == ""


def test_a_fork_has_a_pipe_of_its_own() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w") as stream:  # noqa: PTH123 - descriptors
        handler = DroppingHandler(stream)
        write(handler, "before")
        pids = []
        for child in range(4):
            pid = os.fork()
            if pid == 0:
                for number in range(50):
                    write(handler, f"{child} {number} " + "y" * 300)
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        stream.close()
        lines = reader.read().decode().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == sorted(f"{child} {number} " + "y" * 300 for child in range(4) for number in range(50))
