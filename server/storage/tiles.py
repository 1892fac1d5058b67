"""The pyramid's tiles: what they hold, how they are made from records and from each other, and their bytes. Pure.

A *span* is a run of consecutive records of one writer and attempt. A span of level 0 holds every one of them; one of
level n + 1 stands over `FAN_IN` consecutive spans of level n and holds the same steps in buckets. A *tile* is one
series of a span: a scalar, or one statistic of all layers of a layout.

Buckets begin at multiples of the span's width, a power of two: the least that leaves a span about as many buckets as
each of those under it has entries. So they are 8 steps wide at level 1, 64 at level 2, … where every step is logged,
and wider where few are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from server.storage.blobs import BlobError, pack, pack_last, unpack, unpack_last
from server.storage.buckets import ALL_FIELDS, Buckets, Field, Matrix, bucket_of, merge, reduce
from server.storage.columns import Block, BlockColumns, Columns, ScalarColumn
from server.storage.lru import ARRAY_BYTES

FAN_IN = 8
"""Spans of one level under a span of the next."""
CAPACITY = 256
"""Records or buckets of a full span; fewer where there are very many layers."""
MAX_TILE_VALUES = 2**19
"""Layers × records that a tile of level 0 holds at most: what bounds the memory of the compaction."""
MIN_CAPACITY = 16
SLACK = 1.5

SCALARS = -1
"""The layout of a tile that holds a scalar."""

Series = tuple[int, str]
"""(layout or `SCALARS`, name)."""


@dataclass(frozen=True, kw_only=True)
class TileBlobs:
    """One series of one span, as it is stored: blobs of `storage.blobs`.

    Level 0 has ``last`` alone, which holds the values: float64 of a scalar, or float32, layers × entries. Above it,
    ``least``, ``greatest`` and ``last`` are of each bucket, and ``nonfinite``, int32, is absent where all are 0.
    """

    rows: int
    """1 for a scalar, else the number of layers."""
    present: bytes | None
    """Blob, uint32: which entries of the span this series has, ascending; None for all."""
    last: bytes
    least: bytes | None = None
    greatest: bytes | None = None
    nonfinite: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class SpanDraft:
    """A span before it has an id."""

    level: int
    width: int
    """Steps of a bucket; 1 at level 0."""
    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    entries: int
    steps: bytes
    """Blob, int64: the step of each record, or the number of each bucket."""
    times: bytes | None
    """Blob, float64: Unix time of each record; None above level 0."""
    tiles: Mapping[Series, TileBlobs]


def capacity(layers: int) -> int:
    """Entries of a full span of a writer with so many layers."""
    return max(MIN_CAPACITY, min(CAPACITY, MAX_TILE_VALUES // max(layers, 1)))


def choose_span_width(starts: NDArray[np.int64], least: int, most: int) -> int:
    """The least power of two, not below ``least``, that puts ascending ``starts`` into at most ``most`` buckets."""
    width = least
    while len(np.unique(bucket_of(starts, width))) > most:
        width *= 2
    return width


def span_of_records(columns: Columns, first_seq: int) -> SpanDraft:
    """A span of level 0. ``columns``: at least one record, the steps ascending."""
    n = len(columns.steps)
    tiles: dict[Series, TileBlobs] = {}
    for name, scalar in columns.scalars.items():
        present = None if scalar.present.all() else _pack_present(np.flatnonzero(scalar.present))
        tiles[SCALARS, name] = TileBlobs(rows=1, present=present, last=pack(scalar.values))
    for block in columns.blocks:
        for name, values in block.statistics.items():
            measured = ~np.isnan(values).all(axis=0)
            if not measured.any():
                continue
            whole = len(block.rows) == n and bool(measured.all())
            kept = values if measured.all() else values[:, measured]
            tiles[block.layout, name] = TileBlobs(
                rows=block.layers,
                present=None if whole else _pack_present(block.rows[measured]),
                last=pack(kept),
            )
    return SpanDraft(
        level=0,
        width=1,
        first_seq=first_seq,
        last_seq=first_seq + n - 1,
        first_step=int(columns.steps[0]),
        last_step=int(columns.steps[-1]),
        entries=n,
        steps=pack(columns.steps),
        times=pack(columns.times),
        tiles=tiles,
    )


def tile_of_buckets(buckets: Buckets, numbers: NDArray[np.int64]) -> TileBlobs:
    """A tile above level 0. ``numbers``: the buckets of the span, a superset of those of the series."""
    at = np.searchsorted(numbers, buckets.numbers)
    return TileBlobs(
        rows=buckets.nonfinite.shape[0],
        present=None if len(at) == len(numbers) else _pack_present(at),
        least=pack(buckets.min),
        greatest=pack(buckets.max),
        last=pack_last(buckets.last, buckets.min, buckets.max),
        nonfinite=pack(buckets.nonfinite) if buckets.nonfinite.any() else None,
    )


@dataclass(frozen=True, kw_only=True)
class LevelZero:
    """The values of a series, as a tile of level 0 holds them."""

    at: NDArray[np.int64]
    """(m,): which records of the span."""
    values: Matrix
    """(rows, m)"""

    @property
    def nbytes(self) -> int:
        return int(2 * ARRAY_BYTES + self.at.nbytes + self.values.nbytes)


def decode_values(tile: TileBlobs, entries: int, *, is_scalar: bool) -> LevelZero:
    """Raises `BlobError`."""
    at = _unpack_present(tile.present, entries)
    values = unpack(tile.last, "<f8" if is_scalar else "<f4", tile.rows)
    if values.shape[1] != len(at):
        raise BlobError(f"{values.shape[1]} values for {len(at)} records")
    return LevelZero(at=at, values=values)


def decode_buckets(
    tile: TileBlobs, numbers: NDArray[np.int64], *, is_scalar: bool, fields: frozenset[Field] = ALL_FIELDS
) -> Buckets:
    """The asked fields of a tile above level 0; ``numbers`` are those of its span. Raises `BlobError`."""
    own = numbers[_unpack_present(tile.present, len(numbers))]
    dtype = np.dtype("<f8" if is_scalar else "<f4")
    shape = (tile.rows, len(own))
    untold = np.broadcast_to(dtype.type(np.nan), shape)
    least = greatest = last = untold
    if fields & {"min", "last"}:
        least = _field(tile.least, dtype.str, shape)
    if fields & {"max", "last"}:
        greatest = _field(tile.greatest, dtype.str, shape)
    if "last" in fields:
        last = unpack_last(tile.last, least, greatest)
    nonfinite = (
        np.zeros(shape, np.int32) if tile.nonfinite is None else _field(tile.nonfinite, "<i4", shape).astype(np.int32)
    )
    return Buckets(numbers=own, min=least, max=greatest, last=last, nonfinite=nonfinite)


def reduce_values(
    tile: LevelZero, steps: NDArray[np.int64], width: int, *, is_scalar: bool, window: tuple[int, int] | None = None
) -> Buckets:
    """Buckets of the values at the steps of ``window``, by default all. ``steps``: of the span's records."""
    at, values = steps[tile.at], tile.values
    if window is not None:
        left, right = np.searchsorted(at, window[0]), np.searchsorted(at, window[1], side="right")
        at, values = at[left:right], values[:, left:right]
    # NaN in a block says "not measured"; a scalar that was logged was measured, whatever it is.
    measured = np.ones(values.shape, dtype=np.bool_) if is_scalar else ~np.isnan(values)
    return reduce(at, values, measured, width)


def fold(parts: Sequence[tuple[int, Buckets]], width: int, fields: frozenset[Field] = ALL_FIELDS) -> Buckets:
    """Buckets of ``width`` steps from parts in order, each with a width of its own that is none greater."""
    filled = [part for part in parts if len(part[1].numbers)]
    even = [
        merge([buckets for _, buckets in group], width // own, fields)
        for own, group in groupby(filled, key=lambda part: part[0])
    ]
    return merge(even, 1, fields) if even else parts[0][1]


def unpack_steps(blob: bytes) -> NDArray[np.int64]:
    """The steps or bucket numbers of a span. Raises `BlobError`."""
    steps: NDArray[np.int64] = unpack(blob, "<i8")[0]
    return steps


def columns_of(steps: NDArray[np.int64], times: NDArray[np.float64], tiles: Mapping[Series, LevelZero]) -> Columns:
    """A span of level 0 as the records that it was made of; a statistic that some lack is NaN there."""
    n = len(steps)
    scalars: dict[str, ScalarColumn] = {}
    statistics: dict[int, dict[str, LevelZero]] = {}
    for (layout, name), tile in tiles.items():
        if layout == SCALARS:
            present = np.zeros(n, dtype=np.bool_)
            present[tile.at] = True
            scalars[name] = ScalarColumn(present=present, values=tile.values[0].astype(np.float64, copy=False))
        else:
            statistics.setdefault(layout, {})[name] = tile
    blocks = []
    for layout, found in sorted(statistics.items()):
        rows = np.unique(np.concatenate([tile.at for tile in found.values()]))
        layers = next(iter(found.values())).values.shape[0]
        spread: dict[str, Block] = {}
        for name, tile in found.items():
            full = np.full((layers, len(rows)), np.nan, dtype=np.float32)
            full[:, np.searchsorted(rows, tile.at)] = tile.values
            spread[name] = full
        blocks.append(BlockColumns(layout=layout, layers=layers, rows=rows.astype(np.int32), statistics=spread))
    return Columns(steps=steps, times=times, scalars=scalars, blocks=tuple(blocks))


def cut(columns: Columns, first_seq: int, most: int) -> Iterator[SpanDraft]:
    """Spans of level 0 of equal size, each with ``most`` records or somewhat more; one if there are fewer."""
    n = len(columns.steps)
    pieces = max(1, n // most)
    edges = np.linspace(0, n, pieces + 1).astype(int).tolist()
    for start, stop in pairwise(edges):
        yield span_of_records(columns.rows(start, stop), first_seq + start)


def _field(blob: bytes | None, dtype: str, shape: tuple[int, int]) -> NDArray[np.floating]:
    if blob is None:
        raise BlobError("a field is missing")
    values = unpack(blob, dtype, shape[0])
    if values.shape != shape:
        raise BlobError(f"{values.shape} values instead of {shape}")
    return values


def _pack_present(at: NDArray[np.integer]) -> bytes:
    return pack(at.astype(np.uint32))


def _unpack_present(blob: bytes | None, entries: int) -> NDArray[np.int64]:
    if blob is None:
        return np.arange(entries)
    at: NDArray[np.int64] = unpack(blob, "<u4")[0].astype(np.int64)
    if len(at) > entries or int(at[-1]) >= entries:
        raise BlobError(f"{len(at)} of {entries} records")
    return at
