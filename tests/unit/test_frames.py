"""Frames between coordinator and worker, however the socket cuts them up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import frames
from cluster.backoff import LONGEST_DELAY
from cluster.frames import (
    LARGEST_FRAME,
    FrameError,
    FrameProtocol,
    Report,
    Series,
    coordinator_end,
    for_coordinator,
    for_worker,
    read_changes,
    read_examples,
    read_reports,
    read_series,
    read_successes,
    read_tickets,
    worker_end,
)

FRAMES: list[tuple[Any, ...]] = [  # as a worker gets them
    ("return", None),
    ("perform", 3, 12.5, (20, 25), 7, [(b"\0\0\0\1", None, b""), (b"x" * 300, b"\xff", None)]),
    ("stop", [1, 2**63 - 1], "cancelled"),
]
REPORTS: list[list[Any]] = [  # as a coordinator gets them
    ["done", [[1, "retry", "retry", 0.25, "🐘 \ud800 \0", -1, 0, 1.0, 2.0]]],
    ["ready", 1],
    ["returned", [1, 2**63]],
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
    protocol = coordinator_end(lambda frame: None, nothing, print)
    protocol.connection_made(wire)
    for frame in frames:
        protocol.send(frame)
    return wire.written


def received(*pieces: bytes) -> list[Sequence[Any]]:
    found: list[Sequence[Any]] = []
    protocol = worker_end(found.append, nothing)
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
    protocol = worker_end(lambda frame: None, lambda: ends.append("lost"))
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
        super().__init__(lambda frame: self.send(tuple(frame)), lost.set, for_worker, frames._from_coordinator)


async def test_large_frames_pass_a_real_socket_both_ways() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    arrived: asyncio.Queue[Sequence[Any]] = asyncio.Queue()
    lost = asyncio.Event()
    protocol = FrameProtocol(arrived.put_nowait, nothing, for_worker, frames._from_coordinator)
    for end in (near, far):
        end.setblocking(False)
    await loop.create_unix_connection(lambda: protocol, sock=near)
    await loop.create_unix_connection(lambda: Echo(lost), sock=far)
    sent = [("perform", 0, 0.0, (), [b"x" * 5_000_000]), ("return",), ("stop", [], "released")]
    for frame in sent:
        protocol.send(frame)
    assert [await arrived.get() for _ in sent] == sent
    protocol.close()
    await lost.wait()


# --- what a worker may send: anything, since job code runs in it ---

SUCCESS: list[Any] = [1, "succeeded", "succeeded", None, None, 0, 0, 1.0, 2.0, None]
RETRY: list[Any] = [2, "retry", "failed", 30.0, "Traceback …", 0, 0, 1.0, 2.0, None]
ANYTHING = st.recursive(
    VALUES | st.floats() | st.integers(min_value=2**200),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


def broken_by(*pieces: bytes) -> tuple[list[Sequence[Any]], list[str]]:
    """The frames that came through before, and what was said to be wrong."""
    found: list[Sequence[Any]] = []
    wrong: list[str] = []
    protocol = coordinator_end(found.append, nothing, wrong.append)
    protocol.connection_made(Wire())
    for piece in pieces:
        protocol.data_received(piece)
    return found, wrong


@given(st.binary(), st.binary())
def test_bytes_that_are_no_frame_are_said_to_be_wrong_once_and_nothing_after_them_is_read(
    first: bytes, rest: bytes
) -> None:
    length = len(first).to_bytes(4, "big")
    found, wrong = broken_by(length + first, rest, length + first)
    assert len(wrong) <= 1
    assert all(type(frame) is list or frame[0] == "succeeded" for frame in found)


def test_what_a_worker_sends_arrives_however_it_is_cut_up() -> None:
    data = b"".join(for_coordinator(tuple(frame)) for frame in REPORTS)
    for place in range(len(data) + 1):
        assert broken_by(data[:place], data[place:]) == (REPORTS, [])


def test_bytes_that_marshal_would_make_gigabytes_of_are_no_frame() -> None:
    found, wrong = broken_by(b"\0\0\0\5(\xff\xff\xff\x7f")
    assert (found, len(wrong)) == ([], 1)


def test_frames_before_the_garbage_come_through_and_none_behind_it() -> None:
    good = for_coordinator(("returned", [1]))
    found, wrong = broken_by(good, b"\0\0\0\5junk!", good)
    assert found == [["returned", [1]]]
    assert len(wrong) == 1


def test_a_length_that_no_worker_needs_is_not_waited_for() -> None:
    found, wrong = broken_by((LARGEST_FRAME + 1).to_bytes(4, "big"), b"x")
    assert (found, len(wrong)) == ([], 1)


@given(ANYTHING)
def test_whatever_stands_for_reports_is_read_or_refused(value: Any) -> None:
    for read in (read_reports, read_tickets, read_series, read_changes, read_examples):
        try:
            read(value)
        except FrameError:
            continue


def test_only_a_success_says_something_of_its_schedule() -> None:
    assert read_reports([[*SUCCESS[:9], "SLEEP"]])[0].said == "SLEEP"
    with pytest.raises(FrameError):
        read_reports([[*RETRY[:9], "SLEEP"]])


def test_reports_have_names() -> None:
    assert read_reports([SUCCESS, RETRY]) == [Report(*SUCCESS), Report(*RETRY)]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "1"), (0, True), (0, None), (1, "running"), (1, "done"), (1, ["retry"]), (2, "lost"), (3, -1.0), (3, float("nan")),
        (3, 5), (4, b"text"), (4, "x" * 50_000), (5, 1), (5, -2), (6, 1), (7, float("nan")), (7, float("inf")),
        (7, -1.0), (7, 3.0), (7, 1), (8, 1e300), (8, None), (9, 1), (9, "x" * 1000),
    ],
)  # fmt: skip
def test_a_report_with_a_value_that_no_worker_sends_is_refused(place: int, value: object) -> None:
    for good in (SUCCESS, RETRY):
        with pytest.raises(FrameError):
            read_reports([[*good[:place], value, *good[place + 1 :]]])


@given(st.one_of(ANYTHING, st.lists(st.floats()).map(lambda values: array("d", values))))
def test_whatever_stands_for_successes_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(FrameError):
        read_successes(value)


def test_successes_come_through_as_they_were_sent() -> None:
    sent = array("d", [7, 1.5, 2.5, 8, 2.0, 2.0])
    [frame], _ = broken_by(for_coordinator(("succeeded", sent)))
    assert read_successes(frame[1]) == [(7, 1.5, 2.5), (8, 2.0, 2.0)]
    assert read_successes(array("d")) == []


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value",
    [
        None, [1, 1.0, 2.0], array("d", [1, 1]), array("d", [1, -1, 2]), array("d", [1, 3, 2]),
        array("d", [1, 1, 1e300]), array("d", [1, NAN, 2]), array("d", [1, 1, NAN]), array("d", [1, 1, INFINITE]),
        array("d", [1, 1, 2, 2, NAN, NAN]), {"1": 1},
    ],
)  # fmt: skip
def test_successes_with_a_value_that_no_worker_sends_are_refused(value: object) -> None:
    with pytest.raises(FrameError):
        read_successes(value)


BUCKET: list[Any] = ["histogram", "app_seconds", "app_seconds_bucket", ["queue", "le"], ["mail", "0.5"], "Of one", ""]


def test_series_come_through_as_they_were_sent() -> None:
    [frame], _ = broken_by(for_coordinator(("metrics", [BUCKET], [(0, 1.0), (7, INFINITE)])))
    assert read_series(frame[1]) == [Series(*BUCKET)]
    assert read_changes(frame[2]) == [(0, 1.0), (7, INFINITE)]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "table"), (0, ["gauge"]), (1, None), (2, 7), (3, ["le"]), (3, [["x"], "le"]), (4, ["mail", "wide"]),
        (4, ["mail", "nan"]), (4, "ab"), (5, "\ud800"), (6, {}),
    ],
)  # fmt: skip
def test_a_series_with_a_value_that_no_worker_sends_is_refused(place: int, value: object) -> None:
    with pytest.raises(FrameError):
        read_series([[*BUCKET[:place], value, *BUCKET[place + 1 :]]])


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 1), (1, "\ud800"), (2, "lost"), (3, "A" * 32), (3, "a" * 31), (4, 1), (4, -1.0), (4, NAN), (4, INFINITE)],
)
def test_an_exemplar_with_a_value_that_no_worker_sends_is_refused(place: int, value: object) -> None:
    good = ["MailJob", "default", "succeeded", "a" * 32, 0.5]
    assert read_examples([good]) == [tuple(good)]
    with pytest.raises(FrameError):
        read_examples([[*good[:place], value, *good[place + 1 :]]])


def test_a_delay_is_cut_to_what_dates_can_hold() -> None:
    (report,) = read_reports([[*RETRY[:3], 1e300, *RETRY[4:]]])
    assert report.delay == LONGEST_DELAY
