"""Choice of the spans that answer a query: for each part of the range, the widest buckets that fit. Pure.

A span is used where its buckets are no wider than requested and lie completely within the range. A bucket that the
range cuts in two, and a span whose buckets are too wide, are replaced by spans of the level below. A level has at most
eight spans without a parent, so the number of spans that a query reads depends on the number of requested buckets and
hardly on the length of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.pyramid.buckets import StepRange
from server.pyramid.tiles import SpanHeader


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of a span that a query uses: whole buckets of the span, or any steps at level 0."""

    span: SpanHeader
    step_range: StepRange


def split(
    span: SpanHeader, step_range: StepRange, width: int, is_usable: bool = True
) -> tuple[Piece | None, list[StepRange]]:
    """Return the piece of ``step_range`` that the span itself covers, and the ranges left to the spans below it.

    ``width`` is the number of steps in each requested bucket. ``is_usable`` is False for a damaged span.
    """
    first, last = max(step_range[0], span.first_step), min(step_range[1], span.last_step)
    if first > last:
        return None, []
    if span.level == 0:
        return Piece(span=span, step_range=(first, last)), []
    if span.width > width or not is_usable:
        return None, [(first, last)]
    inner_first = first if first == span.first_step else -(-first // span.width) * span.width
    inner_last = last if last == span.last_step else (last + 1) // span.width * span.width - 1
    if inner_first > inner_last:
        return None, [(first, last)]
    rest = [part for part in ((first, inner_first - 1), (inner_last + 1, last)) if part[0] <= part[1]]
    return Piece(span=span, step_range=(inner_first, inner_last)), rest


def overlapping(children: Iterable[SpanHeader], step_ranges: Sequence[StepRange]) -> list[tuple[SpanHeader, StepRange]]:
    """Return each child paired with each range that it has steps in."""
    return [
        (child, step_range)
        for child in children
        for step_range in step_ranges
        if child.first_step <= step_range[1] and child.last_step >= step_range[0]
    ]
