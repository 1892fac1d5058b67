"""The fields of a protobuf message, as far as event files and W&B files need them. Pure.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_SHIFT = 63

Value = int | bytes


def fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """(number, wire type, value): an int for a varint, else the bytes. Raises `ValueError`."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of the wire type {kind}")
        if at + size > end:
            raise ValueError("a field reaches beyond its message")
        yield number, kind, data[at : at + size]
        at += size


def submessage(value: Value) -> bytes:
    """The bytes of a message, text or packed list. Raises `ValueError` for a number."""
    if isinstance(value, int):
        raise ValueError("a number stands where a message is expected")
    return value


def text(value: Value) -> str:
    """Raises `ValueError`, which `UnicodeDecodeError` is too."""
    return submessage(value).decode()


def float32(value: Value) -> float:
    return _unpacked("<f", value)


def float64(value: Value) -> float:
    return _unpacked("<d", value)


def signed(value: Value) -> int:
    """An int64 from its varint."""
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number is expected")
    return value - 2**64 if value >= 2**63 else value


def first_varint(value: Value) -> int:
    """Of a repeated integer, packed or not."""
    return value if isinstance(value, int) else _varint(value, 0)[0]


def _unpacked(form: str, value: Value) -> float:
    data = submessage(value)
    size = struct.calcsize(form)
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes instead of {size}")
    number: float = struct.unpack_from(form, data)[0]
    return number


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("the message breaks off within a number")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (2**64 - 1), at
        shift += 7
        if shift > MAX_SHIFT:
            raise ValueError("a number of more than 64 bits")
