"""Finding the spans that answer a query, in one statement where nothing is damaged and no attempt was replaced.

Which of them are used is decided by `storage.pyramid`; this fetches those that it may decide for.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, FromClause, Select, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.schema import spans
from server.storage.measurements.coverage import Piece, overlapping, split
from server.storage.measurements.spans import PLACE, SpanPlace
from server.storage.measurements.tile_source import batches
from server.storage.measurements.views import View, Window
from server.storage.measurements.wanted import Wanted

MAX_WIDTH = 2**62
"""No span has wider buckets; that of the widest query is no 64-bit number."""
COLUMNS = (*PLACE, spans.c.parent_id, spans.c.steps)


@dataclass(frozen=True, kw_only=True)
class Query:
    run_id: str
    view: View
    window: Window
    wanted: Wanted
    width: int


@dataclass(frozen=True, kw_only=True)
class _Child:
    place: SpanPlace
    steps: bytes


async def plan(connection: AsyncConnection, query: Query, damaged: Set[int]) -> tuple[list[Piece], dict[int, bytes]]:
    """The pieces, and the stored steps of their spans. ``damaged``: ids of spans that are not to be used."""
    first, last = query.window
    pieces: list[Piece] = []
    steps: dict[int, bytes] = {}
    fetched: dict[int | None, list[_Child]] = {}
    values = {"first": first, "last": last}
    width = min(query.width, MAX_WIDTH)
    for row in await connection.execute(TREE, {**values, "run_id": query.run_id, "width": width}):
        fetched.setdefault(row.parent_id, []).append(_child(row))
    todo: list[tuple[_Child, Window]] = []
    for root in fetched.get(None, ()):
        place = root.place
        shown = query.view.windows.get((place.rank, place.attempt))
        if shown is not None and query.wanted.is_from(place.rank, place.writer_id):
            todo.append((root, (max(first, shown[0]), min(last, shown[1]))))
    while todo:
        below: dict[int, list[Window]] = {}
        unknown: list[int] = []
        for child, part in todo:
            span = child.place
            piece, rest = split(span, part, query.width, is_usable=span.id not in damaged)
            if piece is not None:
                pieces.append(piece)
                steps[span.id] = child.steps
            if rest:
                below.setdefault(span.id, []).extend(rest)
                if span.id in damaged or not all(_is_fetched(span, window, query) for window in rest):
                    unknown.append(span.id)
        for parents in batches(unknown):
            for number in parents:
                fetched[number] = []
            for row in await connection.execute(CHILDREN, {**values, "parents": list(parents)}):
                fetched[row.parent_id].append(_child(row))
        todo = []
        for number, windows in below.items():
            children = {child.place: child for child in fetched.get(number, ())}
            todo += [(children[place], window) for place, window in overlapping(children, windows)]
    return pieces, steps


_FIRST, _LAST = bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger)


def _overlaps(table: FromClause) -> ColumnElement[bool]:
    return (table.c.first_step <= _LAST) & (table.c.last_step >= _FIRST)


def _tree() -> Select[Any]:
    roots = select(*COLUMNS).where(spans.c.run_id == bindparam("run_id"), spans.c.parent_id.is_(None), _overlaps(spans))
    tree = roots.cte("tree", recursive=True)
    above = tree.alias()
    is_asked = or_(
        above.c.width > bindparam("width", type_=BigInteger),
        # The bucket that the range cuts in two.
        (above.c.first_step < _FIRST) & (spans.c.first_step - above.c.width < _FIRST),
        (above.c.last_step > _LAST) & (spans.c.last_step > _LAST - above.c.width),
    )
    below = select(*COLUMNS).join(above, spans.c.parent_id == above.c.id)
    # Were it the new spans that are asked whether they overlap, SQLite would filter all spans there are beforehand.
    tree = tree.union_all(below.where(above.c.level > 0, _overlaps(above), is_asked))
    return select(tree).where(_overlaps(tree))


TREE = _tree()
"""The spans of a run that are under no other, and of those below the ones that the edges and the width ask for.

Made once: to make it takes longer than to run it.
"""
CHILDREN = select(*COLUMNS).where(spans.c.parent_id.in_(bindparam("parents", expanding=True)), _overlaps(spans))


def _is_fetched(span: SpanPlace, window: Window, query: Query) -> bool:
    """Whether `TREE` gave all children of a span that have steps in the window."""
    first, last = query.window
    if span.width > query.width:
        return True
    return (span.first_step < first <= window[0] and window[1] < first + span.width) or (
        span.last_step > last >= window[1] and window[0] > last - span.width
    )


def _child(row: Any) -> _Child:
    values = tuple(row)
    names = SpanPlace.__dataclass_fields__
    return _Child(place=SpanPlace(**dict(zip(names, values, strict=False))), steps=row.steps)
