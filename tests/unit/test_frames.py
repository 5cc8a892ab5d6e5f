"""Frames between coordinator and worker, however the socket cuts them up."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.frames import FrameProtocol

FRAMES: list[tuple[Any, ...]] = [
    ("return",),
    ("perform", 3, 12.5, (20, 25), [(b"\0\0\0\1", None, b""), (b"x" * 300, b"\xff", None)]),
    ("stop", [(0, 1), (2, 2**63 - 1)], "cancelled"),
    ("done", [(0, 1, "retry", "retry", 0.25, "🐘 \ud800 \0", -1, 1, 1.0, 2.0)]),
    ("ready", {"forkserver_threads": 1}),
]
VALUES = st.none() | st.integers() | st.floats(allow_nan=False) | st.binary() | st.text() | st.booleans()


class Wire(asyncio.Transport):
    """Keeps what is written to it, as if its socket had no room."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:  # Any: asyncio's buffers
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 1

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def nothing() -> None:
    """For frames whose end is of no interest."""


def encoded(*frames: tuple[Any, ...]) -> bytes:
    wire = Wire()
    protocol = FrameProtocol(lambda frame: None, nothing)
    protocol.connection_made(wire)
    for frame in frames:
        protocol.send(frame)
    return wire.written


def received(*pieces: bytes) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    protocol = FrameProtocol(found.append, nothing)
    protocol.connection_made(Wire())
    for piece in pieces:
        protocol.data_received(piece)
    return found


def test_frames_arrive_as_they_were_sent_when_split_at_any_byte() -> None:
    data = encoded(*FRAMES)
    for place in range(len(data) + 1):
        assert received(data[:place], data[place:]) == FRAMES


def test_frames_arrive_when_every_byte_comes_alone() -> None:
    data = encoded(*FRAMES)
    assert received(*(data[place : place + 1] for place in range(len(data)))) == FRAMES


def test_a_frame_that_is_not_complete_is_kept_back() -> None:
    data = encoded(*FRAMES)
    assert received(data[:-1]) == FRAMES[:-1]
    assert received(b"") == received(data[:3]) == []


@given(st.lists(st.lists(VALUES).map(tuple)), st.integers(min_value=1, max_value=50))
def test_any_values_in_pieces_of_any_size(frames: list[tuple[Any, ...]], size: int) -> None:
    data = encoded(*frames)
    pieces = [data[place : place + size] for place in range(0, len(data), size)]
    assert received(*pieces) == frames


def test_what_is_sent_before_the_connection_or_after_its_end_is_dropped() -> None:
    wire = Wire()
    ends: list[str] = []
    protocol = FrameProtocol(lambda frame: None, lambda: ends.append("lost"))
    protocol.send(("return",))
    protocol.close()
    protocol.connection_made(wire)
    protocol.close()
    protocol.send(("return",))
    protocol.connection_lost(None)
    protocol.send(("return",))
    assert (wire.written, ends) == (b"", ["lost"])


def test_a_value_that_cannot_be_marshalled_is_refused_where_it_is_sent() -> None:
    with pytest.raises(ValueError, match="unmarshallable"):
        encoded(("done", [object()]))


class Echo(FrameProtocol):
    """Sends back what it receives."""

    def __init__(self, lost: asyncio.Event) -> None:
        super().__init__(self.send, lost.set)


async def test_large_frames_pass_a_real_socket_both_ways() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    arrived: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    lost = asyncio.Event()
    protocol = FrameProtocol(arrived.put_nowait, nothing)
    for end in (near, far):
        end.setblocking(False)
    await loop.create_unix_connection(lambda: protocol, sock=near)
    await loop.create_unix_connection(lambda: Echo(lost), sock=far)
    frames = [("perform", 0, 0.0, (), [b"x" * 5_000_000]), ("return",), ("stop", [], "released")]
    for frame in frames:
        protocol.send(frame)
    assert [await arrived.get() for _ in frames] == frames
    protocol.close()
    await lost.wait()
