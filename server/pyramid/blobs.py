"""Arrays as bytes of a tile: compressed, checksummed and exact to the bit. Pure.

A blob is ``CRC-32 of the rest (uint32, little-endian) · codec (uint8) · body``. The codecs are:

* 1: the standalone format of pcodec, row-major, with any number of chunks. It preserves every bit, even those of NaN.
* 2: the last values of buckets whose minima and maxima are known: ``length (uint32) · choices · body``. ``choices`` is
  compressed with zstd and contains two bits for each value, packed by `numpy.packbits`: first whether each value is the
  minimum, then whether each is the maximum. ``body`` contains the values that are neither, in the format of codec 1,
  and is empty where there are none.
* 3: bits, packed by `numpy.packbits` and compressed with zstd.

docs/explanation/storage.md has a table that compares pcodec with zstd and byte-shuffled zstd on recorded statistics.
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
    """Raised for bytes that are not a valid blob."""


def pack(values: NDArray[Any], pages: Sequence[int] | None = None) -> bytes:
    """Compress an array of any shape with at least one value: int32, int64, uint32, float32 or float64.

    ``pages`` are the numbers of consecutive values that are compressed together, each above 0; None compresses all
    values together.

    >>> unpack(pack(np.array([[1.0, 2.0], [3.0, 4.0]])), "<f8", rows=2).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    return _seal(_PLAIN, _compress(values, pages))


def unpack(blob: bytes, dtype: str, rows: int = 1) -> NDArray[Any]:
    """Return the values of `pack`, shape (rows, n). Raises `BlobError` if the blob is damaged or of another type."""
    codec, body = _open(blob)
    if codec != _PLAIN:
        raise BlobError(f"the blob has codec {codec} instead of {_PLAIN}")
    return _shaped(_decompress(body), dtype, rows)


def pack_bits(bits: NDArray[np.bool_]) -> bytes:
    """Compress an array of bits of any shape."""
    return _seal(_FLAGS, zstandard.ZstdCompressor(level=3).compress(np.packbits(bits).tobytes()))


def unpack_bits(blob: bytes, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the bits of `pack_bits` in the given shape. Raises `BlobError` if blob or shape do not match."""
    codec, body = _open(blob)
    if codec != _FLAGS:
        raise BlobError(f"the blob has codec {codec} instead of {_FLAGS}")
    try:
        packed = np.frombuffer(zstandard.ZstdDecompressor().decompress(body), np.uint8)
    except zstandard.ZstdError as error:
        raise BlobError(str(error)) from error
    count = shape[0] * shape[1]
    if len(packed) != -(-count // 8):
        raise BlobError(f"{len(packed)} bytes for {count} bits")
    return np.unpackbits(packed, count=count).astype(np.bool_).reshape(shape)


def pack_last(last: NDArray[Any], minima: NDArray[Any], maxima: NDArray[Any], *, by_row: bool = False) -> bytes:
    """Compress ``last``, many of whose values equal those of ``minima`` or ``maxima``. All have the shape (rows, n).

    ``by_row`` compresses each row by itself, which suits rows that have little in common.
    """
    bits = _BITS[last.itemsize]
    values, low, high = (np.ascontiguousarray(array).view(bits).reshape(-1) for array in (last, minima, maxima))
    is_min = values == low
    is_max = (values == high) & ~is_min
    choices = zstandard.ZstdCompressor(level=3).compress(np.packbits(np.concatenate([is_min, is_max])).tobytes())
    other = ~(is_min | is_max)
    rest = np.ascontiguousarray(last).reshape(-1)[other]
    counts = np.count_nonzero(other.reshape(last.shape), axis=1)
    body = _compress(rest, counts[counts > 0].tolist() if by_row else None) if len(rest) else b""
    return _seal(_CHOSEN, _LENGTH.pack(len(choices)) + choices + body)


def unpack_last(blob: bytes, minima: NDArray[Any], maxima: NDArray[Any]) -> NDArray[Any]:
    """Return the values that `pack_last` compressed, in the shape of ``minima``. Raises `BlobError`."""
    codec, body = _open(blob)
    if codec != _CHOSEN:
        raise BlobError(f"the blob has codec {codec} instead of {_CHOSEN}")
    try:
        (length,) = _LENGTH.unpack_from(body)
        packed = zstandard.ZstdDecompressor().decompress(body[_LENGTH.size : _LENGTH.size + length])
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=2 * minima.size).astype(np.bool_)
    except (struct.error, zstandard.ZstdError, ValueError) as error:
        raise BlobError(str(error)) from error
    is_min, is_max = bits[: minima.size].reshape(minima.shape), bits[minima.size :].reshape(minima.shape)
    last = np.where(is_min, minima, maxima)
    other = ~(is_min | is_max)
    rest = body[_LENGTH.size + length :]
    values = _decompress(rest) if rest else np.empty(0, minima.dtype)
    if len(values) != int(np.count_nonzero(other)) or values.dtype != minima.dtype:
        raise BlobError("the last values do not match the minima and maxima")
    last[other] = values
    return last


def check(blob: bytes) -> None:
    """Raise `BlobError` if the checksum does not match the bytes."""
    _open(blob)


def _seal(codec: int, body: bytes) -> bytes:
    return _HEAD.pack(zlib.crc32(bytes([codec]) + body), codec) + body


def _open(blob: bytes) -> tuple[int, bytes]:
    if len(blob) < _HEAD.size:
        raise BlobError(f"{len(blob)} bytes are too few for a blob")
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
        raise BlobError("the blob contains no values")
    return values


def _shaped(values: NDArray[Any], dtype: str, rows: int) -> NDArray[Any]:
    if values.dtype != np.dtype(dtype) or len(values) % rows:
        raise BlobError(f"{len(values)} values of {values.dtype} instead of {rows} rows of {dtype}")
    shaped: NDArray[Any] = values.reshape(rows, -1)
    return shaped
