"""The pyramid's tiles: what they hold, how they are made from records and from each other, and their bytes. Pure.

A *span* is a run of consecutive records of one writer and attempt. A span of level 0 holds every one of them; one of
level n + 1 stands over `FAN_IN` consecutive spans of level n and holds the same steps in buckets. A *tile* is one
statistic of all layers of a layout over a span, or some of its scalars: those that follow each other by name, so that a
query of twenty reads a tile and not twenty.

Buckets begin at multiples of the span's width, a power of two: the least that leaves a span about as many buckets as
each of those under it has entries. So they are 8 steps wide at level 1, 64 at level 2, … where every step is logged,
and wider where few are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.pyramid.blobs import BlobError, pack, pack_bits, pack_last, unpack, unpack_bits, unpack_last
from server.pyramid.buckets import ALL_FIELDS, Buckets, Field, Matrix, StepRange, bucket_of, reduce
from server.pyramid.columns import Block, BlockColumns, Columns, ScalarColumn
from server.pyramid.footprint import ARRAY_BYTES

FAN_IN = 8
"""Spans of one level under a span of the next."""
CAPACITY = 256
"""Records or buckets of a full span; fewer where there are very many layers."""
MAX_TILE_VALUES = 2**19
"""Layers × records that a tile of level 0 holds at most: what bounds the memory of the compaction."""
MIN_CAPACITY = 16
SLACK = 1.5
SCALARS_TOGETHER = 64
"""Scalars of a tile, at most."""

SCALARS = -1
"""The layout of a tile that holds scalars."""

TileKey = tuple[int, str]
"""(layout, statistic), or (`SCALARS`, the first name): a tile within its span."""


@dataclass(frozen=True, kw_only=True)
class TileBlobs:
    """A tile as it is stored: blobs of `storage.blobs`, row-major, a row for each layer or scalar.

    Level 0 has ``last`` alone, which holds the values: float32, layers × entries; or float64 of scalars, of each those
    that were logged. Above it, ``least``, ``greatest`` and ``last`` are of each bucket, and ``nonfinite``, int32, is
    absent where all are 0; what a row did not measure in a bucket is NaN in all three, and not counted.
    """

    rows: int
    names: tuple[str, ...] | None
    """Of the scalars, ascending; None for a statistic."""
    present: bytes | None
    """Blob, uint32: which entries of the span this tile has, ascending; None for all. Of scalars at level 0 it is bits,
    rows × entries: was this one logged in this record."""
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
    tiles: Mapping[TileKey, TileBlobs]


@dataclass(frozen=True, kw_only=True)
class SpanHeader:
    """A span without its contents."""

    id: int
    writer_id: int
    rank: int
    attempt: int
    level: int
    width: int
    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    entries: int


def capacity(layers: int) -> int:
    """Entries of a full span of a writer with so many layers."""
    return max(MIN_CAPACITY, min(CAPACITY, MAX_TILE_VALUES // max(layers, 1)))


def choose_span_width(starts: NDArray[np.int64], min_width: int, max_buckets: int) -> int:
    """The least power of two, not below ``least``, that puts ascending ``starts`` into at most ``most`` buckets."""
    width = min_width
    while len(np.unique(bucket_of(starts, width))) > max_buckets:
        width *= 2
    return width


def span_of_records(columns: Columns, first_seq: int) -> SpanDraft:
    """A span of level 0. ``columns``: at least one record, the steps ascending."""
    n = len(columns.steps)
    tiles = scalar_tiles(columns.scalars)
    for block in columns.blocks:
        for name, values in block.statistics.items():
            measured = ~np.isnan(values).all(axis=0)
            if not measured.any():
                continue
            whole = len(block.rows) == n and bool(measured.all())
            kept = values if measured.all() else values[:, measured]
            tiles[block.layout, name] = TileBlobs(
                rows=block.layers,
                names=None,
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


def scalar_tiles(columns: Mapping[str, ScalarColumn]) -> dict[TileKey, TileBlobs]:
    """Tiles of level 0. Each scalar was logged at least once."""
    tiles: dict[TileKey, TileBlobs] = {}
    for names in together(columns):
        found = [columns[name] for name in names]
        present = np.stack([scalar.present for scalar in found])
        tiles[SCALARS, names[0]] = TileBlobs(
            rows=len(names),
            names=names,
            present=None if present.all() else pack_bits(present),
            last=pack(np.concatenate([scalar.values for scalar in found]), [len(scalar.values) for scalar in found]),
        )
    return tiles


def together(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Scalars as tiles have them."""
    known = sorted(names)
    return (tuple(known[at : at + SCALARS_TOGETHER]) for at in range(0, len(known), SCALARS_TOGETHER))


def title_of(key: TileKey, names: Sequence[str] | None) -> str:
    """What a tile is called in messages."""
    return key[1] if names is None or len(names) < 2 else f"{names[0]} … {names[-1]}"


def shared_rows(held: Sequence[str], wanted: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of the scalars that are in both, in either."""
    places = {name: row for row, name in enumerate(wanted)}
    here = [row for row, name in enumerate(held) if name in places]
    there = [places[held[row]] for row in here]
    return np.array(here, dtype=np.int64), np.array(there, dtype=np.int64)


def tile_of_buckets(buckets: Buckets, numbers: NDArray[np.int64], names: tuple[str, ...] | None = None) -> TileBlobs:
    """A tile above level 0. ``numbers``: the buckets of the span, a superset of those of the tile, which are some.

    ``names``: of the rows, where they are scalars.
    """
    at = np.searchsorted(numbers, buckets.numbers)
    # Scalars have little in common: each row is compressed by itself.
    pages = None if names is None else [len(buckets.numbers)] * buckets.rows
    bad = buckets.nonfinite
    return TileBlobs(
        rows=buckets.rows,
        names=names,
        present=None if len(at) == len(numbers) else _pack_present(at),
        least=pack(buckets.min, pages),
        greatest=pack(buckets.max, pages),
        last=pack_last(buckets.last, buckets.min, buckets.max, by_row=names is not None),
        nonfinite=pack(bad) if bad is not None and bad.any() else None,
    )


@dataclass(frozen=True, kw_only=True)
class LevelZero:
    """The values of a tile of level 0."""

    at: NDArray[np.int64]
    """(m,): which records of the span."""
    values: Matrix
    """(rows, m)"""
    measured: NDArray[np.bool_] | None
    """(rows, m): which of them were; None: all."""

    def of(self, rows: NDArray[np.int64]) -> LevelZero:
        """Some of the rows."""
        measured = None if self.measured is None else self.measured[rows]
        return LevelZero(at=self.at, values=self.values[rows], measured=measured)

    @property
    def nbytes(self) -> int:
        arrays: list[NDArray[Any]] = [self.at, self.values, *([] if self.measured is None else [self.measured])]
        return sum(ARRAY_BYTES + array.nbytes for array in arrays)


def layer_values(at: NDArray[np.int64], values: Matrix) -> LevelZero:
    """Of a statistic, in which NaN says "not measured"."""
    missing = np.isnan(values)
    return LevelZero(at=at, values=values, measured=~missing if missing.any() else None)


def scalar_values(measured: NDArray[np.bool_], logged: NDArray[np.float64]) -> LevelZero:
    """Of scalars, in which a NaN that was logged was measured. ``measured``: (scalars, n). ``logged``: row by row."""
    values = np.full(measured.shape, np.nan)
    values[measured] = logged
    return LevelZero(at=np.arange(measured.shape[1]), values=values, measured=None if measured.all() else measured)


def decode_values(tile: TileBlobs, entries: int) -> LevelZero:
    """Raises `BlobError`."""
    if tile.names is not None:
        return _decode_scalars(tile, entries)
    at = _unpack_present(tile.present, entries)
    values = unpack(tile.last, "<f4", tile.rows)
    if values.shape[1] != len(at):
        raise BlobError(f"{values.shape[1]} values for {len(at)} records")
    return layer_values(at, values)


def _decode_scalars(tile: TileBlobs, entries: int) -> LevelZero:
    at = np.arange(entries)
    if tile.present is None:
        values = unpack(tile.last, "<f8", tile.rows)
        if values.shape[1] != entries:
            raise BlobError(f"{values.shape[1]} values for {entries} records")
        return LevelZero(at=at, values=values, measured=None)
    measured = unpack_bits(tile.present, (tile.rows, entries))
    logged = unpack(tile.last, "<f8")[0]
    if len(logged) != np.count_nonzero(measured):
        raise BlobError(f"{len(logged)} values for {np.count_nonzero(measured)} that were logged")
    return scalar_values(measured, logged)


def decode_buckets(tile: TileBlobs, numbers: NDArray[np.int64], *, fields: frozenset[Field] = ALL_FIELDS) -> Buckets:
    """The asked fields of a tile above level 0; ``numbers`` are those of its span. Raises `BlobError`."""
    own = numbers if tile.present is None else numbers[_unpack_present(tile.present, len(numbers))]
    dtype = "<f4" if tile.names is None else "<f8"
    shape = (tile.rows, len(own))
    found: dict[Field, Matrix] = {}
    if fields & {"min", "last"}:
        found["min"] = _field(tile.least, dtype, shape)
    if fields & {"max", "last"}:
        found["max"] = _field(tile.greatest, dtype, shape)
    if "last" in fields:
        found["last"] = unpack_last(tile.last, found["min"], found["max"])
    bad = None if tile.nonfinite is None else _field(tile.nonfinite, "<i4", shape).astype(np.int32)
    return Buckets(
        numbers=own, fields={field: matrix for field, matrix in found.items() if field in fields}, nonfinite=bad
    )


def reduce_values(
    tile: LevelZero,
    steps: NDArray[np.int64],
    width: int,
    *,
    fields: Iterable[Field] = ALL_FIELDS,
    step_range: StepRange | None = None,
) -> Buckets:
    """Buckets of the values at the steps of ``window``, by default all. ``steps``: of the span's records."""
    at, values, measured = steps[tile.at], tile.values, tile.measured
    if step_range is not None:
        left, right = np.searchsorted(at, step_range[0]), np.searchsorted(at, step_range[1], side="right")
        at, values = at[left:right], values[:, left:right]
        measured = None if measured is None else measured[:, left:right]
    return reduce(at, values, measured, width, fields)


def unpack_steps(blob: bytes) -> NDArray[np.int64]:
    """The steps or bucket numbers of a span. Raises `BlobError`."""
    steps: NDArray[np.int64] = unpack(blob, "<i8")[0]
    return steps


def columns_of(
    steps: NDArray[np.int64],
    times: NDArray[np.float64],
    tiles: Mapping[TileKey, tuple[Sequence[str] | None, LevelZero]],
) -> Columns:
    """A span of level 0 as the records that it was made of; a statistic that some lack is NaN there.

    ``tiles``: the names of scalars, or None, and the values.
    """
    scalars: dict[str, ScalarColumn] = {}
    statistics: dict[int, dict[str, LevelZero]] = {}
    for (layout, name), (names, tile) in tiles.items():
        if names is None:
            statistics.setdefault(layout, {})[name] = tile
            continue
        for row, scalar in enumerate(names):
            present = np.ones(len(steps), dtype=np.bool_) if tile.measured is None else tile.measured[row]
            scalars[scalar] = ScalarColumn(present=present, values=tile.values[row][present])
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


def cut(columns: Columns, first_seq: int, min_records: int) -> Iterator[SpanDraft]:
    """Spans of level 0 of equal size, each with ``most`` records or somewhat more; one if there are fewer."""
    n = len(columns.steps)
    pieces = max(1, n // min_records)
    edges = np.linspace(0, n, pieces + 1).astype(int).tolist()
    for start, stop in pairwise(edges):
        yield span_of_records(columns.rows(start, stop), first_seq + start)


def _field(blob: bytes | None, dtype: str, shape: tuple[int, int]) -> Matrix:
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
