"""How coordinator and worker processes talk: length-prefixed frames over a socketpair, batched both ways.

A frame is a 4-byte big-endian length and one marshalled tuple whose first item is its kind. Both ends run the same
interpreter, so marshal is safe here, and it is several times faster than pickle on tuples of bytes.

    coordinator -> worker
        ("perform", type, fence, oids, rows)  type: index in the list of job types both sides were given; fence:
                                          CLOCK_BOOTTIME seconds from which on the rows may be somebody else's;
                                          oids: of the columns; rows: raw values in the order of claim_jobs.sql
        ("stop", [(type, id)], reason)    stop these attempts; reason: "cancelled" or "released"
        ("return",)                       give back what has not begun
    worker -> coordinator
        ("ready", {...})                  the process can perform jobs; facts about it
        ("done", [report])                see Report
        ("returned", [(type, id)])        never begun, no longer held
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import struct
from collections.abc import Callable
from typing import Any, TypeAlias, cast

Report: TypeAlias = tuple[int, int, str, str, float | None, str | None, int, int, float, float]
"""One attempt's end: type, id, status for the row, outcome for the metrics, delay in seconds until the next attempt (None: run_at
stays), error (None: last_error stays), change of attempts_count, change of crashes_count, begun and ended (CLOCK_MONOTONIC)."""

# Places in the rows of claim_jobs.sql and claim_limited_jobs.sql; the class's own columns follow.
ID, ATTEMPTS, CRASHES, LOCKED_AT, WAIT, QUEUE, PRIORITY, RUN_AT, CREATED_AT, COLUMNS = range(10)

_LENGTH = struct.Struct(">I")


def integer(value: bytes | None) -> int:
    """A smallint, integer or bigint from its binary form."""
    return int.from_bytes(value or b"", "big", signed=True)


class FrameProtocol(asyncio.Protocol):
    """One end of the socketpair. received: called with each frame; lost: called once when the other end is gone."""

    def __init__(self, received: Callable[[tuple[Any, ...]], None], lost: Callable[[], None]) -> None:
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, frame: tuple[Any, ...]) -> None:
        """Nothing happens when the other end is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        payload = marshal.dumps(frame)
        _write(self._transport, _LENGTH.pack(len(payload)) + payload)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start, end = 0, len(self._buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if end - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            frame = marshal.loads(memoryview(self._buffer)[start : start + length])  # noqa: S302 - our own process sent it
            start += length
            self._received(frame)
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()


def _write(transport: asyncio.Transport, data: bytes) -> None:
    """At once. The transport would wait until this turn of the loop ends, and the other end for that long without need."""
    sent = 0
    if not transport.get_write_buffer_size():
        with contextlib.suppress(OSError):  # no room, or the other end is gone: the transport knows what to do
            sent = os.write(transport.get_extra_info("socket").fileno(), data)
    if sent < len(data):
        transport.write(data[sent:])
