"""Arrays as bytes of a tile: compressed, checksummed, exact to the bit. Pure.

A blob is ``crc-32 of the rest (uint32, little-endian) · codec (uint8) · body``. Codecs:

* 1: the standalone format of pcodec, row-major, of any number of chunks. It keeps every bit, those of NaN included.
* 2: the last values of buckets whose least and greatest values are known: ``length (uint32) · choices · body``.
  ``choices``, zstd, are two times a bit for each value, as `numpy.packbits` puts them: is it the least, is it the
  greatest. ``body`` has in codec 1's format those that are neither, and nothing where there are none.
* 3: bits, as `numpy.packbits` puts them, compressed with zstd.

pcodec was measured on recorded statistics next to zstd and byte-shuffled zstd: docs/storage.md has the table.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from pcodec import ChunkConfig, PagingSpec, standalone

_HEAD = struct.Struct("<IB")
_LENGTH = struct.Struct("<I")
_PLAIN = 1
_CHOSEN = 2
_FLAGS = 3
_CONFIG = ChunkConfig()
_BITS = {4: np.uint32, 8: np.uint64}


class BlobError(ValueError):
    """Bytes that are no blob, or not any more."""


def pack(values: NDArray[Any], pages: Sequence[int] | None = None) -> bytes:
    """Any shape, at least one value; int32, int64, uint32, float32 or float64.

    ``pages``: how many values are compressed together, in order, none of them 0; by default all are.
    """
    return _seal(_PLAIN, _compress(values, pages))


def unpack(blob: bytes, dtype: str, rows: int = 1) -> NDArray[Any]:
    """(rows, n). Raises `BlobError`."""
    codec, body = _open(blob)
    if codec != _PLAIN:
        raise BlobError(f"codec {codec} instead of {_PLAIN}")
    return _shaped(_decompress(body), dtype, rows)


def pack_bits(bits: NDArray[np.bool_]) -> bytes:
    """Any shape."""
    return _seal(_FLAGS, zstandard.ZstdCompressor(level=3).compress(np.packbits(bits).tobytes()))


def unpack_bits(blob: bytes, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Raises `BlobError`."""
    codec, body = _open(blob)
    if codec != _FLAGS:
        raise BlobError(f"codec {codec} instead of {_FLAGS}")
    try:
        packed = np.frombuffer(zstandard.ZstdDecompressor().decompress(body), np.uint8)
    except zstandard.ZstdError as error:
        raise BlobError(str(error)) from error
    count = shape[0] * shape[1]
    if len(packed) != -(-count // 8):
        raise BlobError(f"{len(packed)} bytes for {count} bits")
    return np.unpackbits(packed, count=count).astype(np.bool_).reshape(shape)


def pack_last(last: NDArray[Any], least: NDArray[Any], greatest: NDArray[Any], *, by_row: bool = False) -> bytes:
    """``last``, in which many values are those of ``least`` or ``greatest``. All of one shape, (rows, n).

    ``by_row``: whether the rows have little in common.
    """
    bits = _BITS[last.itemsize]
    values, low, high = (np.ascontiguousarray(array).view(bits).reshape(-1) for array in (last, least, greatest))
    is_least = values == low
    is_greatest = (values == high) & ~is_least
    choices = zstandard.ZstdCompressor(level=3).compress(np.packbits(np.concatenate([is_least, is_greatest])).tobytes())
    other = ~(is_least | is_greatest)
    rest = np.ascontiguousarray(last).reshape(-1)[other]
    counts = np.count_nonzero(other.reshape(last.shape), axis=1)
    body = _compress(rest, counts[counts > 0].tolist() if by_row else None) if len(rest) else b""
    return _seal(_CHOSEN, _LENGTH.pack(len(choices)) + choices + body)


def unpack_last(blob: bytes, least: NDArray[Any], greatest: NDArray[Any]) -> NDArray[Any]:
    """What `pack_last` was given, shaped as ``least``. Raises `BlobError`."""
    codec, body = _open(blob)
    if codec != _CHOSEN:
        raise BlobError(f"codec {codec} instead of {_CHOSEN}")
    try:
        (length,) = _LENGTH.unpack_from(body)
        packed = zstandard.ZstdDecompressor().decompress(body[_LENGTH.size : _LENGTH.size + length])
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=2 * least.size).astype(np.bool_)
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise BlobError(str(error)) from error
    is_least, is_greatest = bits[: least.size].reshape(least.shape), bits[least.size :].reshape(least.shape)
    last = np.where(is_least, least, greatest)
    other = ~(is_least | is_greatest)
    rest = body[_LENGTH.size + length :]
    values = _decompress(rest) if rest else np.empty(0, least.dtype)
    if len(values) != int(np.count_nonzero(other)) or values.dtype != least.dtype:
        raise BlobError("the last values do not fit the others")
    last[other] = values
    return last


def check(blob: bytes) -> None:
    """Raises `BlobError` when the checksum is not that of the bytes."""
    _open(blob)


def _seal(codec: int, body: bytes) -> bytes:
    return _HEAD.pack(zlib.crc32(bytes([codec]) + body), codec) + body


def _open(blob: bytes) -> tuple[int, bytes]:
    if len(blob) < _HEAD.size:
        raise BlobError(f"{len(blob)} bytes are no blob")
    crc, codec = _HEAD.unpack_from(blob)
    if zlib.crc32(blob[4:]) != crc:
        raise BlobError("the checksum does not match")
    return codec, blob[_HEAD.size :]


def _compress(values: NDArray[Any], pages: Sequence[int] | None = None) -> bytes:
    flat = np.ascontiguousarray(values).reshape(-1)
    config = _CONFIG if pages is None else ChunkConfig(paging_spec=PagingSpec.exact_page_sizes(list(pages)))
    return bytes(standalone.simple_compress(flat, config))


def _decompress(body: bytes) -> NDArray[Any]:
    try:
        values: NDArray[Any] | None = standalone.simple_decompress(body)
    except RuntimeError as error:
        raise BlobError(str(error)) from error
    if values is None:
        raise BlobError("no values")
    return values


def _shaped(values: NDArray[Any], dtype: str, rows: int) -> NDArray[Any]:
    if values.dtype != np.dtype(dtype) or len(values) % rows:
        raise BlobError(f"{len(values)} values of {values.dtype} instead of {rows} rows of {dtype}")
    shaped: NDArray[Any] = values.reshape(rows, -1)
    return shaped
