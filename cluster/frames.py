"""How coordinator and worker processes talk: length-prefixed frames over a socketpair, batched both ways.

A frame is a 4-byte big-endian length and an encoded tuple whose first item is its kind. To workers it is marshalled: both ends run
the same interpreter, and nothing is faster on tuples of bytes. What comes from a worker is JSON, or plain numbers for attempts that
went as most do, and checked as from a stranger: job code runs in the same process and may write to any descriptor, and of some
bytes marshal would make gigabytes.

A claim that is with a worker has a ticket, a number that is never used again: its row's id may come again.

    coordinator -> worker
        ("perform", type, fence, oids, ticket, rows)  type: index in the list of job types both sides were given; fence:
                                          CLOCK_BOOTTIME seconds from which on the rows may be somebody else's; oids: of the
                                          columns; ticket: of the first row, the others follow; rows: raw values as claimed
        ("stop", [ticket], reason)        stop these attempts; reason: "cancelled" or "released"
        ("return", [ticket])              give back those of them that have not begun
        ("return", None)                  give back everything that has not begun
    worker -> coordinator
        ("importing", module)             begins to import a module with jobs; before "ready"
        ("unfit", why)                    its job classes can't be imported, or are not those that it was told; before its end
        ("ready", threads, [name])        the process can perform jobs; threads: of the forkserver, after its imports; name: of
                                          each job class that it has found
        ("succeeded", array)              attempts that went as most do: of each ticket, begun and ended, as floats;
                                          CLOCK_MONOTONIC seconds
        ("done", [report])                others, see Report
        ("returned", [ticket])            never begun, no longer held
        ("exemplars", [example])          attempts whose trace is worth a look, see Example; once a second
        ("metrics", [series], [change])   of job code, see Series and `read_changes`; sent before the reports of the attempts that
                                          changed them
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import marshal
import math
import operator
import os
import re
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

from cluster.backoff import LONGEST_DELAY
from cluster.error_text import LONGEST

STATUSES = frozenset({"succeeded", "failed", "timed_out", "cancelled", "retry", "scheduled", "not_started"})
OUTCOMES = STATUSES - {"scheduled", "not_started"} | {"snoozed", "released", "crashed"}
KINDS = frozenset({"counter", "gauge", "histogram", "summary"})
_TRACE_ID = re.compile("[0-9a-f]{32}", re.ASCII)
_FLOATS = b"\0"
"""Before the numbers of a frame that is not JSON."""
LARGEST_FRAME = 16 * 2**20
"""Bytes of a frame that a worker may send: twice what its longest texts can make."""


LONGEST_SAID = 200
"""Characters of a value that no schedule knows."""
CLOCK_SLACK = 1.0
"""Seconds that an attempt may seem to end in the future."""


class Report(NamedTuple):
    """One attempt's end, on the wire as a list.

    status: for the row. outcome: for the metrics. delay: seconds until the next attempt, None: run_at stays. error: for last_error,
    None: that stays. attempts, crashes: changes of the counts. begun, ended: CLOCK_MONOTONIC seconds. said: what a job that has
    succeeded says of its schedule, None: nothing; see cluster.tell_schedule.
    """

    ticket: int
    status: str
    outcome: str
    delay: float | None
    error: str | None
    attempts: int
    crashes: int
    begun: float
    ended: float
    said: str | None = None


class Example(NamedTuple):
    """An attempt that stands for others of its job type, queue and outcome, on the wire as a list. seconds: that it took."""

    job_type: str
    queue: str
    outcome: str
    trace_id: str
    seconds: float


class Series(NamedTuple):
    """One series of a metric that job code keeps, on the wire as a list. The first that a worker sends has the number 0, and so on.

    kind: counter, gauge, histogram or summary. family: the metric's name; name: with the suffix of the series. text: its
    documentation. mode: of a gauge, how prometheus-client would put those of several processes together.
    """

    kind: str
    family: str
    name: str
    label_names: list[str]
    labels: list[str]
    text: str
    mode: str


class FrameError(Exception):
    """Bytes that no worker sends."""


# Places in the rows of claim_jobs.sql and claim_limited_jobs.sql; the class's own columns follow.
ID, ATTEMPTS, CRASHES, LOCKED_AT, WAIT, QUEUE, PRIORITY, RUN_AT, CREATED_AT, SCHEDULED_FOR, ZONE, COLUMNS = range(12)

_LENGTH = struct.Struct(">I")


RawRow = Sequence[bytes | None]
"""Values as the database sent them."""


def integer(value: bytes | None) -> int:
    """A smallint, integer or bigint from its binary form."""
    return int.from_bytes(value or b"", "big", signed=True)


def read_reports(value: object) -> list[Report]:
    """From a "done" frame. FrameError: it is none."""
    if type(value) is not list:
        raise FrameError(f"reports: {type(value).__name__}")
    return [_read_report(item) for item in value]


def read_successes(value: object) -> list[tuple[int, float, float]]:
    """From a "succeeded" frame: ticket, begun and ended in CLOCK_MONOTONIC seconds. FrameError: it is none.

    A ticket is the float that equals it, and finds it in a dict.
    """
    if type(value) is not array or len(value) % 3:
        raise FrameError("successes")
    begun, ended = value[1::3], value[2::3]
    latest = time.monotonic() + CLOCK_SLACK
    if value and not (min(begun) >= 0 and all(map(operator.le, begun, ended)) and max(ended) <= latest):
        raise FrameError("times of successes")
    return cast("list[tuple[int, float, float]]", list(zip(value[0::3], begun, ended, strict=True)))


def _are_integers(value: object) -> TypeGuard[list[int]]:
    return type(value) is list and set(map(type, value)) <= {int}


def read_tickets(value: object) -> list[int]:
    """From a "returned" frame. FrameError: it is none."""
    if not _are_integers(value):
        raise FrameError("tickets")
    return value


def read_series(value: object) -> list[Series]:
    """From a "metrics" frame. FrameError: it is none."""
    if type(value) is not list:
        raise FrameError("series")
    return [_read_series(item) for item in value]


def _read_series(item: object) -> Series:
    if type(item) is not list or len(item) != len(Series._fields):
        raise FrameError("a series")
    series = Series._make(item)
    texts = [series.kind, series.family, series.name, series.text, series.mode]
    if not all(map(_are_texts, (texts, series.label_names, series.labels))) or series.kind not in KINDS:
        raise FrameError("the texts of a series")
    if len(series.labels) != len(series.label_names):
        raise FrameError("the labels of a series")
    if series.kind == "histogram" and not _is_bound(
        dict(zip(series.label_names, series.labels, strict=True)).get("le")
    ):
        raise FrameError("a bound")
    return series


def _is_bound(text: str | None) -> bool:
    """None: the series is no bucket."""
    try:
        return not math.isnan(float(text or 0))
    except ValueError:
        return False


def read_examples(value: object) -> list[Example]:
    """From an "exemplars" frame. FrameError: it is none."""
    if type(value) is not list:
        raise FrameError("exemplars")
    return [_read_example(item) for item in value]


def _read_example(item: object) -> Example:
    if type(item) is not list or len(item) != len(Example._fields) or not _are_texts(item[:4]):
        raise FrameError("an exemplar")
    example = Example._make(item)
    if example.outcome not in OUTCOMES or not _TRACE_ID.fullmatch(example.trace_id):
        raise FrameError("an outcome, or a trace")
    if type(example.seconds) is not float or not 0 <= example.seconds < math.inf:
        raise FrameError("the time of an exemplar")
    return example


def read_changes(value: object) -> list[tuple[int, float]]:
    """From the same: numbers of series, each with what a gauge is, or with the amount by which another one has grown."""
    if type(value) is not list or not all(
        type(item) is list and list(map(type, item)) == [int, float] for item in value
    ):
        raise FrameError("changes of series")
    return [(number, change) for number, change in value]


def _are_texts(value: object) -> bool:
    """A list of such as can be written out: lone surrogates can't."""
    try:
        return type(value) is list and set(map(type, value)) <= {str} and "".join(value).encode() is not None
    except UnicodeEncodeError:
        return False


def _read_report(item: object) -> Report:
    if type(item) is not list or len(item) != len(Report._fields):
        raise FrameError("a report")
    report = Report._make(item)
    if type(report.ticket) is not int or not _is_past(report.begun, report.ended):
        raise FrameError("a ticket, or a time")
    if not (_is_word(report.status, STATUSES) and _is_word(report.outcome, OUTCOMES)):
        raise FrameError("a status, or an outcome")
    if not (report.error is None or (type(report.error) is str and len(report.error) <= 2 * LONGEST)):
        raise FrameError("an error text")
    if not (
        type(report.attempts) is int
        and -1 <= report.attempts <= 0
        and type(report.crashes) is int
        and report.crashes == 0
    ):
        raise FrameError("a change of counts")
    if report.said is not None and not (
        type(report.said) is str and len(report.said) <= 2 * LONGEST_SAID and report.status == "succeeded"
    ):
        raise FrameError("a word for a schedule")
    if report.delay is None:
        return report
    if type(report.delay) is not float or not report.delay >= 0:
        raise FrameError("a delay")
    return report._replace(delay=min(report.delay, LONGEST_DELAY))


def _is_word(value: object, words: frozenset[str]) -> bool:
    return type(value) is str and value in words


def _is_past(begun: object, ended: object) -> bool:
    """NaN is not. Processes of one host share the clock."""
    return type(begun) is float and type(ended) is float and 0.0 <= begun <= ended <= time.monotonic() + CLOCK_SLACK


def for_worker(frame: tuple[Any, ...]) -> bytes:
    """As it goes to a worker."""
    payload = marshal.dumps(frame, 2)  # later ones look for objects that come twice
    return _LENGTH.pack(len(payload)) + payload


def for_coordinator(frame: tuple[Any, ...]) -> bytes:
    """As it goes to the coordinator."""
    if frame[0] == "succeeded":
        payload = _FLOATS + cast("array[float]", frame[1]).tobytes()
    else:
        payload = json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(payload)) + payload


def _from_coordinator(payload: memoryview) -> Sequence[Any]:
    frame: tuple[Any, ...] = marshal.loads(payload)  # noqa: S302 - our own process sent it
    return frame


def _from_worker(payload: memoryview) -> Sequence[Any]:
    try:
        if payload[:1] == _FLOATS:
            floats = array("d")
            floats.frombytes(payload[1:])
            return "succeeded", floats
        frame = json.loads(bytes(payload).decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"neither JSON nor numbers: {type(error).__name__}") from None
    if type(frame) is not list:
        raise FrameError(f"a {type(frame).__name__}")
    return frame


class FrameProtocol(asyncio.Protocol):
    """One end of the socketpair, see `worker_end` and `coordinator_end`.

    received: called with each frame, may raise FrameError. lost: called once when the other end is gone.
    broken: called once, with what is wrong, when the other end has sent what is no frame; None: it is trusted.
    """

    def __init__(
        self,
        received: Callable[[Sequence[Any]], None],
        lost: Callable[[], None],
        encode: Callable[[tuple[Any, ...]], bytes],
        decode: Callable[[memoryview], Sequence[Any]],
        broken: Callable[[str], None] | None = None,
    ) -> None:
        self._received = received
        self._lost = lost
        self._encode = encode
        self._decode = decode
        self._broken = broken
        self._is_broken = False
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, frame: tuple[Any, ...]) -> None:
        """Nothing happens when the other end is gone."""
        if self._transport is not None and not self._transport.is_closing():
            _write(self._transport, self._encode(frame))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        if self._is_broken:
            return
        self._buffer += data
        try:
            self._take_frames()
        except FrameError as error:
            if self._broken is None:
                raise
            self._is_broken = True
            self._buffer.clear()
            self._broken(str(error))

    def _take_frames(self) -> None:
        start, end = 0, len(self._buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if self._broken is not None and length > LARGEST_FRAME:
                raise FrameError(f"a frame of {length} bytes")
            if end - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            with memoryview(self._buffer)[start : start + length] as payload:
                frame = self._decode(payload)
            start += length
            self._received(frame)
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()


def worker_end(received: Callable[[Sequence[Any]], None], lost: Callable[[], None]) -> FrameProtocol:
    """In a worker."""
    return FrameProtocol(received, lost, for_coordinator, _from_coordinator)


def coordinator_end(
    received: Callable[[Sequence[Any]], None], lost: Callable[[], None], broken: Callable[[str], None]
) -> FrameProtocol:
    """In the coordinator."""
    return FrameProtocol(received, lost, for_worker, _from_worker, broken)


def _write(transport: asyncio.Transport, data: bytes) -> None:
    """At once. The transport would wait until this turn of the loop ends, and the other end for that long without need."""
    sent = 0
    if not transport.get_write_buffer_size():
        with contextlib.suppress(OSError):  # no room, or the other end is gone: the transport knows what to do
            sent = os.write(transport.get_extra_info("socket").fileno(), data)
    if sent < len(data):
        transport.write(data[sent:])
