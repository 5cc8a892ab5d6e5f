"""Arrays of fixed-width values in Postgres's binary format, packed whole.

A finish carries several arrays with an element per job; adapting them element by element would cost more than the rest of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from psycopg import pq
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, Loader

_HEADER = struct.Struct(">iiIii")  # dimensions, has nulls, element type, length, lower bound
_EMPTY = struct.Struct(">iiI")
_NULL = struct.pack(">i", -1)


@dataclass
class PackedArray:
    """A one-dimensional array. Subclasses name the element's struct format and type OIDs; None is NULL."""

    element: ClassVar[str]
    element_oid: ClassVar[int]
    array_oid: ClassVar[int]

    values: Sequence[Any]

    def pack(self) -> bytes:
        elements = self._elements()
        has_nulls = None in elements
        head = _HEADER.pack(1, has_nulls, self.element_oid, len(elements), 1)
        width = struct.pack(">i", struct.calcsize(f">{self.element}"))
        if has_nulls:
            return head + b"".join(_NULL if value is None else width + value for value in elements)
        return head + width + width.join(elements) if elements else _EMPTY.pack(0, 0, self.element_oid)  # type: ignore[arg-type]

    def _elements(self) -> Sequence[bytes | None]:
        pack = struct.Struct(f">{self.element}").pack
        return [None if value is None else pack(value) for value in self.values]


class Integers(PackedArray):
    """integer[]"""

    element, element_oid, array_oid = "i", 23, 1007


class BigIntegers(PackedArray):
    """bigint[]"""

    element, element_oid, array_oid = "q", 20, 1016


class Floats(PackedArray):
    """double precision[]"""

    element, element_oid, array_oid = "d", 701, 1022


class Raw(PackedArray):
    """From the 8 raw bytes that the database sent for each."""

    element = "8s"

    def _elements(self) -> Sequence[bytes | None]:
        return self.values


class RawBigIntegers(Raw):
    """bigint[]"""

    element_oid, array_oid = 20, 1016


class Timestamps(Raw):
    """timestamptz[]"""

    element_oid, array_oid = 1184, 1185


class Instant(int):
    """A timestamptz as Postgres has it, in microseconds since 2000: any year that it knows, and cheaper than a datetime."""


class InstantLoader(Loader):
    """timestamptz -> Instant"""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> Instant:
        return Instant(int.from_bytes(data, "big", signed=True))


class InstantDumper(Dumper):
    """Instant -> timestamptz"""

    format = pq.Format.BINARY
    oid = 1184

    def dump(self, obj: Instant) -> Buffer | None:
        return obj.to_bytes(8, "big", signed=True)


def register(context: AdaptContext) -> None:
    """Lets a connection, or what it adapts with, take packed arrays and instants as parameters."""
    context.adapters.register_dumper(Instant, InstantDumper)
    for packed in (Integers, BigIntegers, Floats, RawBigIntegers, Timestamps):
        context.adapters.register_dumper(packed, _dumper(packed.array_oid))


def _dumper(array_oid: int) -> type[Dumper]:
    class PackedDumper(Dumper):
        format = pq.Format.BINARY
        oid = array_oid

        def dump(self, obj: PackedArray) -> Buffer | None:
            return obj.pack()

    return PackedDumper
