"""Tiles of the pyramid: their contents, their bytes, and how they are built from records and from each other. Pure.

A *span* is a sequence of consecutive records of one writer and attempt. A span of level 0 contains every record; a span
of level n + 1 covers `FAN_IN` consecutive spans of level n and contains the same steps in buckets. A *tile* contains
one statistic of all layers of a layout over a span, or some of its scalars. Scalars that are adjacent by name share a
tile, so that a query for twenty of them reads one tile and not twenty.

Buckets begin at multiples of the span's width, a power of two. It is the smallest width at which a span has about as
many buckets as each of its children has entries: 8 steps at level 1, 64 at level 2, … where every step is logged, and
more where fewer are.
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
"""Number of spans of one level that a span of the next level covers."""
CAPACITY = 256
"""Number of records or buckets in a full span; smaller where there are very many layers."""
MAX_TILE_VALUES = 2**19
"""Maximum of layers × records in a tile of level 0, which bounds the memory of the compaction."""
MIN_CAPACITY = 16
SLACK = 1.5
SCALARS_TOGETHER = 64
"""Maximum number of scalars in a tile."""

SCALARS = -1
"""Layout number of tiles that contain scalars."""

TileKey = tuple[int, str]
"""Key of a tile within its span: (layout, statistic), or (`SCALARS`, the first name)."""


@dataclass(frozen=True, kw_only=True)
class TileBlobs:
    """Encoded tile: blobs of `pyramid.blobs`, row-major, with one row for each layer or scalar.

    At level 0 only ``last`` is set. It contains the values: float32, layers × entries, or for scalars float64, only
    those that were logged. Above level 0, ``least``, ``greatest`` and ``last`` describe each bucket. ``nonfinite``,
    int32, is None where all counts are 0. A row without measured values in a bucket is NaN in all three and has the
    count 0.
    """

    rows: int
    names: tuple[str, ...] | None
    """Names of the scalars, ascending, or None for a statistic."""
    present: bytes | None
    """Entries of the span that this tile has, or None where it has all of them.

    For a statistic and above level 0 it is a blob of ascending indices, uint32. For scalars at level 0 it is a blob of
    bits, rows × entries: whether each scalar was logged in each record.
    """
    last: bytes
    least: bytes | None = None
    greatest: bytes | None = None
    nonfinite: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class SpanDraft:
    """Span before it has an id."""

    level: int
    width: int
    """Steps in each bucket; 1 at level 0."""
    first_seq: int
    last_seq: int
    first_step: int
    last_step: int
    entries: int
    steps: bytes
    """Blob, int64: the step of each record, or the number of each bucket above level 0."""
    times: bytes | None
    """Blob, float64: the Unix time of each record, or None above level 0."""
    tiles: Mapping[TileKey, TileBlobs]


@dataclass(frozen=True, kw_only=True)
class SpanHeader:
    """Description of a span without its contents."""

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
    """Return the number of entries in a full span of a run with the given number of layers.

    >>> capacity(48), capacity(4096), capacity(1_000_000)
    (256, 128, 16)
    """
    return max(MIN_CAPACITY, min(CAPACITY, MAX_TILE_VALUES // max(layers, 1)))


def choose_span_width(starts: NDArray[np.int64], min_width: int, max_buckets: int) -> int:
    """Return the smallest power of two from ``min_width`` on that puts ``starts`` into at most ``max_buckets`` buckets.

    ``starts`` are ascending steps.

    >>> choose_span_width(np.array([0, 8, 16, 24]), 8, 2)
    16
    """
    width = min_width
    while len(np.unique(bucket_of(starts, width))) > max_buckets:
        width *= 2
    return width


def span_of_records(columns: Columns, first_seq: int) -> SpanDraft:
    """Build a span of level 0 from at least one record with ascending steps."""
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
    """Build the tiles of scalars at level 0. Each scalar must have been logged at least once."""
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
    """Group names of scalars by the tile that contains them.

    >>> [len(names) for names in together(f"metric {n:03}" for n in range(100))]
    [64, 36]
    """
    known = sorted(names)
    return (tuple(known[at : at + SCALARS_TOGETHER]) for at in range(0, len(known), SCALARS_TOGETHER))


def title_of(key: TileKey, names: Sequence[str] | None) -> str:
    """Return the name of a tile for messages to people.

    >>> title_of((0, "grad_norm"), None), title_of((SCALARS, "loss"), ("loss", "lr"))
    ('grad_norm', 'loss … lr')
    """
    return key[1] if names is None or len(names) < 2 else f"{names[0]} … {names[-1]}"


def shared_rows(held: Sequence[str], wanted: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the scalars that both lists contain: their rows in ``held``, and their rows in ``wanted``.

    >>> here, there = shared_rows(["a", "b", "c"], ["c", "a"])
    >>> here.tolist(), there.tolist()
    ([0, 2], [1, 0])
    """
    row_of = {name: row for row, name in enumerate(wanted)}
    here = [row for row, name in enumerate(held) if name in row_of]
    there = [row_of[held[row]] for row in here]
    return np.array(here, dtype=np.int64), np.array(there, dtype=np.int64)


def tile_of_buckets(buckets: Buckets, numbers: NDArray[np.int64], names: tuple[str, ...] | None = None) -> TileBlobs:
    """Build a tile above level 0 from at least one bucket.

    ``numbers`` are the buckets of the span, a superset of the tile's. ``names`` are those of the rows where they are
    scalars.
    """
    at = np.searchsorted(numbers, buckets.numbers)
    # Scalars have little in common, so each row is compressed by itself.
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
    """Decoded values of a tile of level 0."""

    at: NDArray[np.int64]
    """Indices of the span's records that the values belong to, shape (m,)."""
    values: Matrix
    """Values, shape (rows, m)."""
    measured: NDArray[np.bool_] | None
    """Whether each value was measured, shape (rows, m), or None where all were."""

    def of(self, rows: NDArray[np.int64]) -> LevelZero:
        """Return some of the rows."""
        measured = None if self.measured is None else self.measured[rows]
        return LevelZero(at=self.at, values=self.values[rows], measured=measured)

    @property
    def nbytes(self) -> int:
        """Size in memory in bytes, the objects around the numbers included."""
        arrays: list[NDArray[Any]] = [self.at, self.values, *([] if self.measured is None else [self.measured])]
        return sum(ARRAY_BYTES + array.nbytes for array in arrays)


def layer_values(at: NDArray[np.int64], values: Matrix) -> LevelZero:
    """Wrap the values of a statistic, in which NaN means "not measured"."""
    missing = np.isnan(values)
    return LevelZero(at=at, values=values, measured=~missing if missing.any() else None)


def scalar_values(measured: NDArray[np.bool_], logged: NDArray[np.float64]) -> LevelZero:
    """Wrap the values of scalars, in which a logged NaN counts as measured.

    ``measured`` has the shape (scalars, n); ``logged`` contains the measured values row by row.
    """
    values = np.full(measured.shape, np.nan)
    values[measured] = logged
    return LevelZero(at=np.arange(measured.shape[1]), values=values, measured=None if measured.all() else measured)


def decode_values(tile: TileBlobs, entries: int) -> LevelZero:
    """Decode a tile of level 0 of a span with ``entries`` records. Raises `BlobError` if it is damaged."""
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
    """Decode the requested fields of a tile above level 0. Raises `BlobError` if it is damaged.

    ``numbers`` are those of the buckets of the span.
    """
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
    """Reduce the values of a tile to buckets, restricted to ``step_range`` where it is given.

    ``steps`` are those of the records of the span.
    """
    at, values, measured = steps[tile.at], tile.values, tile.measured
    if step_range is not None:
        left, right = np.searchsorted(at, step_range[0]), np.searchsorted(at, step_range[1], side="right")
        at, values = at[left:right], values[:, left:right]
        measured = None if measured is None else measured[:, left:right]
    return reduce(at, values, measured, width, fields)


def unpack_steps(blob: bytes) -> NDArray[np.int64]:
    """Decode the steps or bucket numbers of a span. Raises `BlobError` if they are damaged."""
    steps: NDArray[np.int64] = unpack(blob, "<i8")[0]
    return steps


def columns_of(
    steps: NDArray[np.int64],
    times: NDArray[np.float64],
    tiles: Mapping[TileKey, tuple[Sequence[str] | None, LevelZero]],
) -> Columns:
    """Restore the records that a span of level 0 was built from. A statistic that some records lack is NaN there.

    ``tiles`` contains the names of the scalars, or None for a statistic, and the values.
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
    """Split records into spans of level 0 of equal size, each with ``min_records`` records or slightly more.

    Fewer records than that form a single span.
    """
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
