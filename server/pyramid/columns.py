"""Records as columns, and the encoding of segments. Pure.

The payload of a segment, version 1, is a msgpack array

    [1, n, steps, times, names, present, values, blocks]

* ``n``: number of records.
* ``steps``: int64, the first step and then the differences. ``times``: float64.
* ``names``: the k names of the scalars in the segment, sorted.
* ``present``: k × n bits, row-major, packed by `numpy.packbits`: whether each name was logged in each record.
* ``values``: float64, only where present, in the same order. A logged NaN is present; a value that was not logged is
  not.
* ``blocks``: one ``[layout, layers, rows, {statistic: values}]`` for each layout in use. ``rows``: int32, the m records
  that carry a block. ``values``: float32, layers × m, so that the history of one layer is contiguous. A statistic that
  is NaN throughout is left out.

Every array is little-endian, its bytes are grouped by significance (all first bytes, all second bytes, …) and
compressed with zstd, so that each column can be read without the others.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

VERSION = 1
COMPRESSION_LEVEL = 1


class _Codecs(threading.local):
    """Compressor and decompressor of each thread: creating them takes longer than compressing a small column."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()

Floats = NDArray[np.float64]
Block = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ScalarColumn:
    """Values of one scalar over the records of a segment."""

    present: NDArray[np.bool_]
    """Whether each record contains the scalar, shape (n,)."""
    values: Floats
    """Logged values, shape (number of records that contain the scalar,)."""


@dataclass(frozen=True, kw_only=True)
class BlockColumns:
    """Blocks of one layout over the records of a segment."""

    layout: int
    layers: int
    rows: NDArray[np.int32]
    """Indices of the m records that carry a block, ascending, shape (m,)."""
    statistics: Mapping[str, Block]
    """Values of each statistic, shape (layers, m), keyed by name. A statistic that is NaN throughout is absent."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of n records in the order of their sequence."""

    steps: NDArray[np.int64]
    """Steps of the records, shape (n,)."""
    times: Floats
    """Times of the records in Unix seconds, shape (n,)."""
    scalars: Mapping[str, ScalarColumn]
    blocks: tuple[BlockColumns, ...] = ()

    @property
    def size(self) -> int:
        """Approximate size in memory in bytes."""
        arrays: list[NDArray[Any]] = [self.steps, self.times]
        arrays += [array for column in self.scalars.values() for array in (column.present, column.values)]
        arrays += [values for block in self.blocks for values in block.statistics.values()]
        return sum(array.nbytes for array in arrays)

    def rows(self, start: int, stop: int) -> Columns:
        """Return the records start ≤ i < stop."""
        scalars = {}
        for name, column in self.scalars.items():
            before = int(np.count_nonzero(column.present[:start]))
            present = column.present[start:stop]
            inside = int(np.count_nonzero(present))
            if inside:
                scalars[name] = ScalarColumn(present=present, values=column.values[before : before + inside])
        blocks = []
        for block in self.blocks:
            left, right = np.searchsorted(block.rows, [start, stop])
            if left == right:
                continue
            statistics = {name: values[:, left:right] for name, values in block.statistics.items()}
            rows = (block.rows[left:right] - start).astype(np.int32)
            blocks.append(BlockColumns(layout=block.layout, layers=block.layers, rows=rows, statistics=statistics))
        return Columns(
            steps=self.steps[start:stop], times=self.times[start:stop], scalars=scalars, blocks=tuple(blocks)
        )


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Join the records of several segments of one writer, in this order. Requires at least one part."""
    if len(parts) == 1:
        return parts[0]
    starts = np.concatenate(([0], np.cumsum([len(part.steps) for part in parts]))).tolist()
    scalars = {}
    for name in dict.fromkeys(name for part in parts for name in part.scalars):
        present = np.zeros(starts[-1], dtype=np.bool_)
        for start, part in zip(starts[:-1], parts, strict=True):
            if name in part.scalars:
                present[start : start + len(part.steps)] = part.scalars[name].present
        values = np.concatenate([part.scalars[name].values for part in parts if name in part.scalars])
        scalars[name] = ScalarColumn(present=present, values=values)
    blocks = []
    for layout in dict.fromkeys(block.layout for part in parts for block in part.blocks):
        placed = [
            (start, block)
            for start, part in zip(starts[:-1], parts, strict=True)
            for block in part.blocks
            if block.layout == layout
        ]
        rows = np.concatenate([block.rows + start for start, block in placed]).astype(np.int32)
        layers = placed[0][1].layers
        statistics = {}
        for name in dict.fromkeys(name for _, block in placed for name in block.statistics):
            values = np.full((layers, len(rows)), np.nan, dtype=np.float32)
            at = 0
            for _, block in placed:
                if name in block.statistics:
                    values[:, at : at + len(block.rows)] = block.statistics[name]
                at += len(block.rows)
            statistics[name] = values
        blocks.append(BlockColumns(layout=layout, layers=layers, rows=rows, statistics=statistics))
    return Columns(
        steps=np.concatenate([part.steps for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        scalars=scalars,
        blocks=tuple(blocks),
    )


def encode(columns: Columns) -> bytes:
    """Encode columns as the payload of a segment.

    >>> columns = Columns(steps=np.array([3, 4]), times=np.zeros(2), scalars={})
    >>> Payload(encode(columns)).steps().tolist()
    [3, 4]
    """
    names = sorted(columns.scalars)
    n = len(columns.steps)
    present = np.array([columns.scalars[name].present for name in names], dtype=np.bool_).reshape(len(names), n)
    values = np.concatenate([columns.scalars[name].values for name in names]) if names else np.empty(0)
    blocks = [
        [
            block.layout,
            block.layers,
            _pack(block.rows, "<i4"),
            {name: _pack(values, "<f4") for name, values in block.statistics.items() if not _is_absent(values)},
        ]
        for block in columns.blocks
    ]
    return msgspec.msgpack.encode(
        [
            VERSION,
            n,
            _pack(_differences(columns.steps), "<i8"),
            _pack(columns.times, "<f8"),
            names,
            _compress(np.packbits(present).tobytes()),
            _pack(values, "<f8"),
            blocks,
        ]
    )


class Payload:
    """Payload of a segment whose columns are decoded on request.

    The constructor and the methods raise `ValueError` if the bytes are not a valid payload.
    """

    def __init__(self, data: bytes) -> None:
        try:
            parts = msgspec.msgpack.decode(data)
        except msgspec.DecodeError as error:
            raise ValueError(f"not a segment ({error})") from error
        if not isinstance(parts, list) or len(parts) != 8 or parts[0] != VERSION:
            raise ValueError(f"not a segment of version {VERSION}")
        _, self.n, self._steps, self._times, self._names, self._present, self._values, self._blocks = parts

    def steps(self) -> NDArray[np.int64]:
        """Return the steps of the records, shape (n,)."""
        return np.cumsum(_unpack(self._steps, "<i8", self.n), dtype=np.int64)

    def times(self) -> Floats:
        """Return the times of the records in Unix seconds, shape (n,)."""
        return _unpack(self._times, "<f8", self.n)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scalars, sorted. Segments share the string objects."""
        return tuple(map(sys.intern, self._names))

    def logged(self) -> tuple[NDArray[np.bool_], Floats]:
        """Return whether each record contains each scalar, shape (names, n), and the logged values in that order."""
        count = len(self._names) * self.n
        bits = np.frombuffer(_decompress(self._present, (count + 7) // 8), dtype=np.uint8)
        present = np.unpackbits(bits, count=count).astype(np.bool_).reshape(len(self._names), self.n)
        return present, _unpack(self._values, "<f8", int(np.count_nonzero(present)))

    def scalars(self) -> dict[str, ScalarColumn]:
        """Return the column of each scalar, keyed by name."""
        present, values = self.logged()
        ends = np.cumsum(np.count_nonzero(present, axis=1))
        pieces = np.split(values, ends[:-1]) if self._names else []
        return {
            name: ScalarColumn(present=row, values=piece)
            for name, row, piece in zip(self._names, present, pieces, strict=True)
        }

    def statistic(self, name: str) -> Iterator[tuple[int, NDArray[np.int32], Block]]:
        """Yield (layout, records (m,), values (layers, m)) for each layout that has this statistic."""
        for layout, layers, rows, statistics in self._blocks:
            if name in statistics:
                indices = _unpack_rows(rows)
                yield layout, indices, _unpack(statistics[name], "<f4", layers * len(indices)).reshape(layers, -1)

    def layouts(self) -> list[int]:
        """Return the numbers of the layouts in use."""
        return [layout for layout, *_ in self._blocks]

    def blocks(self, only: frozenset[str] | None = None) -> tuple[BlockColumns, ...]:
        """Decode the blocks, restricted to the statistics in ``only`` where it is given."""
        found = []
        for layout, layers, rows, statistics in self._blocks:
            indices = _unpack_rows(rows)
            columns = {
                name: _unpack(data, "<f4", layers * len(indices)).reshape(layers, -1)
                for name, data in statistics.items()
                if only is None or name in only
            }
            found.append(BlockColumns(layout=layout, layers=layers, rows=indices, statistics=columns))
        return tuple(found)

    def columns(self, only: frozenset[str] | None = None) -> Columns:
        """Decode all columns, with the statistics restricted to those in ``only`` where it is given."""
        return Columns(steps=self.steps(), times=self.times(), scalars=self.scalars(), blocks=self.blocks(only))


def pack_array(values: NDArray[Any], dtype: str) -> bytes:
    """Encode an array as compressed little-endian bytes, grouped by significance."""
    return _pack(values, dtype)


def unpack_array(data: bytes, dtype: str, count: int) -> NDArray[Any]:
    """Decode ``count`` values from the output of `pack_array`. Raises `ValueError` if the bytes are damaged."""
    return _unpack(data, dtype, count)


def _is_absent(values: Block) -> bool:
    """Return whether a statistic is NaN throughout. The first value decides in nearly all cases."""
    return bool(values.size == 0 or (np.isnan(values.flat[0]) and np.isnan(values).all()))


def _differences(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first step followed by the difference of each step to the one before it."""
    found = steps.copy()
    found[1:] -= steps[:-1]
    return found


def _pack(values: NDArray[Any], dtype: str) -> bytes:
    flat = np.ascontiguousarray(values, dtype=dtype).reshape(-1)
    return _compress(flat.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes())


def _unpack(data: bytes, dtype: str, count: int) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    raw = np.frombuffer(_decompress(data, count * size), dtype=np.uint8)
    return np.ascontiguousarray(raw.reshape(size, count).T).view(dtype).reshape(count)


def _unpack_rows(data: bytes) -> NDArray[np.int32]:
    raw = _decompress(data, None)
    return _unpack(data, "<i4", len(raw) // 4)


def _compress(raw: bytes) -> bytes:
    return _codecs.compressor.compress(raw)


def _decompress(data: bytes, size: int | None) -> bytes:
    try:
        raw = _codecs.decompressor.decompress(data)
    except (zstandard.ZstdError, TypeError) as error:
        raise ValueError(f"a column cannot be decompressed ({error})") from error
    if size is not None and len(raw) != size:
        raise ValueError(f"a column has {len(raw)} bytes instead of {size}")
    return raw
