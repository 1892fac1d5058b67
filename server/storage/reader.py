"""Buckets of any column over any range, from segments, through two caches.

The range is cut into chunks of `CHUNK` aligned buckets. A chunk is kept with the fingerprint of the segments that it
was made of, so a cached one can be told from a stale one without reading a payload; live updates recompute the last
chunk alone. Buckets that the range cuts in two are reduced apart and never kept. A pyramid of stored tiles takes the
place of `_reduce_chunk`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from server.errors import SegmentCorruptError
from server.schema import segments
from server.storage.buckets import Buckets, Matrix, join, reduce
from server.storage.columns import Block, Payload, ScalarColumn
from server.storage.database import Database
from server.storage.lru import ByteLru
from server.storage.segment_index import View

CHUNK = 32  # buckets
FETCH = 256  # payloads held at once while a chunk is made


@dataclass(frozen=True, kw_only=True)
class Column:
    """What is read: a scalar, or a statistic of all layers."""

    kind: Literal["scalar", "statistic"]
    name: str


Group = tuple[int, int]
"""(writer, layout) of a statistic's rows; (0, 0) for a scalar."""
SCALAR: Group = (0, 0)

Tile = Mapping[Group, Buckets]


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """The part of a segment that a column needs."""

    steps: NDArray[np.int64]
    scalars: Mapping[str, ScalarColumn]
    blocks: tuple[tuple[int, NDArray[np.int32], Block], ...]

    @property
    def nbytes(self) -> int:
        held = sum(column.values.nbytes + column.present.nbytes for column in self.scalars.values())
        return 256 + self.steps.nbytes + held + sum(rows.nbytes + block.nbytes for _, rows, block in self.blocks)


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Steps to reduce, and which of their buckets to take."""

    step_from: int
    step_to: int
    first: int
    last: int
    chunk: int | None = None
    """Number of the chunk that this is, None for a bucket that the query cuts in two."""


class BucketReader:
    def __init__(self, database: Database, cache: ByteLru) -> None:
        self._database = database
        self._cache = cache

    async def read(
        self,
        scope: tuple[str, int, int | None],
        view: View,
        column: Column,
        *,
        width: int,
        step_from: int,
        step_to: int,
    ) -> Tile:
        """Buckets of ``width`` steps of the values at step_from ≤ step ≤ step_to.

        ``scope`` names the view among all (run, rank, attempt). Raises `SegmentCorruptError` and `DatabaseError`.
        """
        span = view.span()
        if span is None or step_from > span[1] or step_to < span[0]:
            return {}
        parts: dict[Group, list[Buckets]] = {}
        for piece in _cut(step_from, min(step_to, span[1]), span, width):
            tile = await self._tile(scope, view.overlapping(piece.step_from, piece.step_to), column, width, piece)
            for group, buckets in tile.items():
                inside = buckets.between(piece.first, piece.last)
                if len(inside.numbers):
                    parts.setdefault(group, []).append(inside)
        return {group: join(found) for group, found in parts.items()}

    async def _tile(
        self, scope: tuple[str, int, int | None], view: View, column: Column, width: int, piece: _Range
    ) -> Tile:
        if len(view.ids) == 0:
            return {}
        if piece.chunk is None:
            return await self._reduce_chunk(view, column, width, piece)
        key = ("chunk", scope, column, width, piece.chunk)
        fingerprint = view.fingerprint()
        cached: tuple[tuple[int, int, int], Tile] | None = self._cache.get(key)
        if cached is not None and cached[0] == fingerprint:
            return cached[1]
        tile = await self._reduce_chunk(view, column, width, piece)
        self._cache.put(key, (fingerprint, tile), 256 + sum(buckets.nbytes for buckets in tile.values()))
        return tile

    async def _reduce_chunk(self, view: View, column: Column, width: int, piece: _Range) -> Tile:
        decoded = await self._decode(view.ids, column)
        return await asyncio.to_thread(_reduce, decoded, view, column, width, piece)

    async def _decode(self, ids: NDArray[np.int64], column: Column) -> list[_Decoded]:
        # All scalars of a segment are decoded together: they lie together, and a page asks for several.
        part = column.name if column.kind == "statistic" else None
        wanted = [int(number) for number in ids]
        found: dict[int, _Decoded] = {}
        for number in wanted:
            cached: _Decoded | None = self._cache.get(("column", number, part))
            if cached is not None:
                found[number] = cached
        missing = [number for number in wanted if number not in found]
        for start in range(0, len(missing), FETCH):
            async with self._database.read() as connection:
                rows = await connection.execute(
                    select(segments.c.id, segments.c.payload).where(segments.c.id.in_(missing[start : start + FETCH]))
                )
                payloads = [(row.id, row.payload) for row in rows]
            for number, item in await asyncio.to_thread(_decode_payloads, payloads, part):
                found[number] = item
                self._cache.put(("column", number, part), item, item.nbytes)
        return [found[number] for number in wanted]


def _cut(step_from: int, step_to: int, span: tuple[int, int], width: int) -> list[_Range]:
    """Ranges that cover step_from … step_to: cut buckets at the ends, whole chunks between.

    A bucket is cut only where the view, which spans ``span``, has steps beyond the cut.
    """
    first, last = step_from // width, step_to // width
    cut_left = first * width < step_from and span[0] < step_from
    cut_right = (last + 1) * width - 1 > step_to and span[1] > step_to
    if first == last and (cut_left or cut_right):
        return [_Range(step_from=step_from, step_to=step_to, first=first, last=first)]
    pieces: list[_Range] = []
    if cut_left:
        pieces.append(_Range(step_from=step_from, step_to=(first + 1) * width - 1, first=first, last=first))
        first += 1
    whole = last - 1 if cut_right else last
    for chunk in range(first // CHUNK, whole // CHUNK + 1) if first <= whole else ():
        begin = chunk * CHUNK
        pieces.append(
            _Range(
                step_from=begin * width,
                step_to=(begin + CHUNK) * width - 1,
                first=max(first, begin),
                last=min(whole, begin + CHUNK - 1),
                chunk=chunk,
            )
        )
    if cut_right:
        pieces.append(_Range(step_from=last * width, step_to=step_to, first=last, last=last))
    return pieces


def _decode_payloads(payloads: Sequence[tuple[int, bytes]], part: str | None) -> list[tuple[int, _Decoded]]:
    decoded = []
    for number, data in payloads:
        try:
            payload = Payload(data)
            item = _Decoded(
                steps=payload.steps(),
                scalars=payload.scalars() if part is None else {},
                blocks=() if part is None else tuple(payload.statistic(part)),
            )
        except ValueError as error:
            raise SegmentCorruptError(number, str(error)) from error
        decoded.append((number, item))
    return decoded


def _reduce(decoded: Sequence[_Decoded], view: View, column: Column, width: int, piece: _Range) -> Tile:
    steps: dict[Group, list[NDArray[np.int64]]] = {}
    values: dict[Group, list[Matrix]] = {}
    for item, writer, shown_last in zip(decoded, view.writer_ids, view.last, strict=True):
        left = np.searchsorted(item.steps, piece.step_from)
        right = np.searchsorted(item.steps, min(piece.step_to, int(shown_last)), side="right")
        if column.kind == "scalar":
            scalar = item.scalars.get(column.name)
            if scalar is None:
                continue
            where = np.flatnonzero(scalar.present)
            a, b = np.searchsorted(where, [left, right])
            steps.setdefault(SCALAR, []).append(item.steps[where[a:b]])
            values.setdefault(SCALAR, []).append(scalar.values[None, a:b])
        for layout, rows, block in item.blocks:
            a, b = np.searchsorted(rows, [left, right])
            group = (int(writer), layout)
            steps.setdefault(group, []).append(item.steps[rows[a:b]])
            values.setdefault(group, []).append(block[:, a:b])
    tile = {}
    for group, found in steps.items():
        at = np.concatenate(found)
        matrix = np.concatenate(values[group], axis=1)
        if len(at) > 1 and np.any(at[1:] < at[:-1]):
            order = np.argsort(at, kind="stable")
            at, matrix = at[order], matrix[:, order]
        # NaN in a block says "not measured"; a scalar that was logged was measured, whatever it is.
        measured = np.ones(matrix.shape, dtype=np.bool_) if column.kind == "scalar" else ~np.isnan(matrix)
        tile[group] = reduce(at, matrix, measured, width)
    return tile
