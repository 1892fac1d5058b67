"""Which spans answer a query: of each part of the range the widest buckets that fit it. Pure.

A span is used where its buckets are no wider than those asked for and lie in the range as a whole; the bucket that the
range cuts in two, and a span whose buckets are too wide, are taken from the spans below. At most eight spans of a level
have none above them, so the number of spans that a query reads follows from the number of buckets asked for, and hardly
from the length of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.storage.measurements.spans import SpanPlace
from server.storage.measurements.views import Window


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A span and the steps that are taken of it: whole buckets of the span, or any steps at level 0."""

    span: SpanPlace
    window: Window


def split(span: SpanPlace, window: Window, width: int, is_usable: bool = True) -> tuple[Piece | None, list[Window]]:
    """What the span itself gives of ``window``, and the windows that those below must give.

    ``width``: steps of the buckets asked for.
    """
    first, last = max(window[0], span.first_step), min(window[1], span.last_step)
    if first > last:
        return None, []
    if span.level == 0:
        return Piece(span=span, window=(first, last)), []
    if span.width > width or not is_usable:
        return None, [(first, last)]
    inner_first = first if first == span.first_step else -(-first // span.width) * span.width
    inner_last = last if last == span.last_step else (last + 1) // span.width * span.width - 1
    if inner_first > inner_last:
        return None, [(first, last)]
    rest = [part for part in ((first, inner_first - 1), (inner_last + 1, last)) if part[0] <= part[1]]
    return Piece(span=span, window=(inner_first, inner_last)), rest


def overlapping(children: Iterable[SpanPlace], windows: Sequence[Window]) -> list[tuple[SpanPlace, Window]]:
    """Each child with each window that it has steps in."""
    return [
        (child, window)
        for child in children
        for window in windows
        if child.first_step <= window[1] and child.last_step >= window[0]
    ]
