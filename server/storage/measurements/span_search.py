"""Search for the spans that answer a query: one statement where nothing is damaged and no attempt was replaced.

`pyramid.coverage` decides which spans are used; this module fetches the candidates.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, FromClause, Select, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.pyramid.buckets import StepRange
from server.pyramid.coverage import Piece, overlapping, split
from server.pyramid.row_selection import RowSelection
from server.pyramid.tiles import SpanHeader
from server.schema import spans
from server.storage.measurements.attempt_view import AttemptView
from server.storage.measurements.spans import HEADER_COLUMNS
from server.storage.measurements.tile_source import batches

MAX_WIDTH = 2**62
"""Upper bound of the width in statements. No span has wider buckets, and the width of the widest query does not fit
into a 64-bit number."""
COLUMNS = (*HEADER_COLUMNS, spans.c.parent_id, spans.c.steps)


@dataclass(frozen=True, kw_only=True)
class BucketQuery:
    """Query for buckets of a run: rows, steps and width of the buckets."""

    run_id: str
    view: AttemptView
    step_range: StepRange
    selection: RowSelection
    width: int
    """Steps in each bucket, a power of two."""


@dataclass(frozen=True, kw_only=True)
class _Child:
    header: SpanHeader
    steps: bytes


async def find_spans(
    connection: AsyncConnection, query: BucketQuery, damaged: Set[int]
) -> tuple[list[Piece], dict[int, bytes]]:
    """Return the pieces of spans that answer a query, and the encoded steps of these spans keyed by span id.

    ``damaged`` contains the ids of spans that must not be used: the spans below replace them.
    """
    first, last = query.step_range
    pieces: list[Piece] = []
    steps: dict[int, bytes] = {}
    fetched: dict[int | None, list[_Child]] = {}
    values = {"first": first, "last": last}
    width = min(query.width, MAX_WIDTH)
    for row in await connection.execute(TREE, {**values, "run_id": query.run_id, "width": width}):
        fetched.setdefault(row.parent_id, []).append(_child(row))
    todo: list[tuple[_Child, StepRange]] = []
    for root in fetched.get(None, ()):
        header = root.header
        shown = query.view.step_ranges.get((header.rank, header.attempt))
        if shown is not None and query.selection.includes(header.rank, header.writer_id):
            todo.append((root, (max(first, shown[0]), min(last, shown[1]))))
    while todo:
        below: dict[int, list[StepRange]] = {}
        unknown: list[int] = []
        for child, part in todo:
            span = child.header
            piece, rest = split(span, part, query.width, is_usable=span.id not in damaged)
            if piece is not None:
                pieces.append(piece)
                steps[span.id] = child.steps
            if rest:
                below.setdefault(span.id, []).extend(rest)
                if span.id in damaged or not all(_is_fetched(span, step_range, query) for step_range in rest):
                    unknown.append(span.id)
        for parents in batches(unknown):
            for number in parents:
                fetched[number] = []
            for row in await connection.execute(CHILDREN, {**values, "parents": list(parents)}):
                fetched[row.parent_id].append(_child(row))
        todo = []
        for number, step_ranges in below.items():
            children = {child.header: child for child in fetched.get(number, ())}
            todo += [(children[header], step_range) for header, step_range in overlapping(children, step_ranges)]
    return pieces, steps


_FIRST, _LAST = bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger)


def _overlaps(table: FromClause) -> ColumnElement[bool]:
    return (table.c.first_step <= _LAST) & (table.c.last_step >= _FIRST)


def _tree() -> Select[Any]:
    roots = select(*COLUMNS).where(spans.c.run_id == bindparam("run_id"), spans.c.parent_id.is_(None), _overlaps(spans))
    tree = roots.cte("tree", recursive=True)
    above = tree.alias()
    is_needed = or_(
        above.c.width > bindparam("width", type_=BigInteger),
        # The bucket that the range cuts in two.
        (above.c.first_step < _FIRST) & (spans.c.first_step - above.c.width < _FIRST),
        (above.c.last_step > _LAST) & (spans.c.last_step > _LAST - above.c.width),
    )
    below = select(*COLUMNS).join(above, spans.c.parent_id == above.c.id)
    # The condition is on `above`, not on the new spans: otherwise SQLite would first filter the whole table.
    tree = tree.union_all(below.where(above.c.level > 0, _overlaps(above), is_needed))
    return select(tree).where(_overlaps(tree))


TREE = _tree()
"""Statement for the spans of a run without a parent, and the spans below them that the edges and the width require.

Built once, because building it takes longer than running it.
"""
CHILDREN = select(*COLUMNS).where(spans.c.parent_id.in_(bindparam("parents", expanding=True)), _overlaps(spans))
"""Statement for the children of given spans."""


def _is_fetched(span: SpanHeader, step_range: StepRange, query: BucketQuery) -> bool:
    """Return whether `TREE` returned all children of a span that have steps in the range."""
    first, last = query.step_range
    if span.width > query.width:
        return True
    return (span.first_step < first <= step_range[0] and step_range[1] < first + span.width) or (
        span.last_step > last >= step_range[1] and step_range[0] > last - span.width
    )


def _child(row: Any) -> _Child:
    values = tuple(row)
    names = SpanHeader.__dataclass_fields__
    return _Child(header=SpanHeader(**dict(zip(names, values, strict=False))), steps=row.steps)
