"""The strip of stages: coloured spans of steps with the names of the stages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from client_sdk.answers import Event
from client_sdk.vocabulary import STAGE_MEANINGS, EventKind, Stage
from dashboard.figures.theme import STAGE_COLOURS, Frame, safe

RESOLUTION = 800  # spans narrower than 1/800 of the visible range are merged into their neighbour


@dataclass(frozen=True, kw_only=True)
class Span:
    """A range of steps in one stage."""

    stage: str
    step_from: int
    step_to: int


def spans(events: Iterable[Event], last_step: int) -> list[Span]:
    """Return the spans of the stages in order; the last one ends at ``last_step``."""
    changes = sorted(
        (
            (event.step, event.stage)
            for event in events
            if event.kind == EventKind.STAGE and isinstance(event.stage, str)
        ),
        key=lambda change: change[0],
    )
    found: list[Span] = []
    for index, (step, stage) in enumerate(changes):
        end = changes[index + 1][0] if index + 1 < len(changes) else max(last_step, step)
        if found and found[-1].stage == stage:
            found[-1] = Span(stage=stage, step_from=found[-1].step_from, step_to=end)
        elif end > step or index + 1 == len(changes):
            found.append(Span(stage=stage, step_from=step, step_to=end))
    return found


def strip_track(frame: Frame) -> dict[str, Any]:
    """Return the empty strip, which covers the grid of the step axis."""
    return {
        "type": "bar", "orientation": "h", "xaxis": "x", "yaxis": "y2", "base": [frame.step_from],
        "x": [frame.step_to - frame.step_from], "y": [0], "width": 1, "hoverinfo": "skip",
        "marker": {"color": frame.palette.surface, "line": {"width": 0}},
    }  # fmt: skip


def strip_trace(all_spans: Sequence[Span], frame: Frame) -> dict[str, Any]:
    """Return the spans as bars on the axes x and y2, with the names of the stages where they fit and on hover."""
    width = max(frame.step_to - frame.step_from, 1.0)
    shown: list[Span] = []
    for span in all_spans:
        start, end = max(span.step_from, frame.step_from), min(span.step_to, frame.step_to)
        if end < start:
            continue
        clipped = Span(stage=span.stage, step_from=int(start), step_to=int(end))
        if shown and clipped.step_to - clipped.step_from < width / RESOLUTION and clipped.stage != Stage.SPIKING:
            shown[-1] = Span(stage=shown[-1].stage, step_from=shown[-1].step_from, step_to=clipped.step_to)
        else:
            shown.append(clipped)
    pixels = (340 if frame.narrow else 780) / width
    names = ["not judged" if span.stage == Stage.NOT_JUDGED else span.stage for span in shown]
    words = [
        name if (span.step_to - span.step_from) * pixels > 9 * len(name) else ""
        for name, span in zip(names, shown, strict=True)
    ]
    return {
        "type": "bar",
        "orientation": "h",
        "xaxis": "x",
        "yaxis": "y2",
        "base": [span.step_from for span in shown],
        "x": [max(span.step_to - span.step_from, width / RESOLUTION) for span in shown],
        "y": [0] * len(shown),
        "width": 1,
        "marker": {
            "color": [STAGE_COLOURS.get(span.stage, frame.palette.muted) for span in shown],
            "line": {"width": 0},
        },
        "text": words,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"size": 10, "color": "#15181e"},
        "constraintext": "none",
        "customdata": [
            [name, span.step_from, span.step_to, safe(STAGE_MEANINGS.get(span.stage, ""))]
            for name, span in zip(names, shown, strict=True)
        ],
        "hovertemplate": "<b>%{customdata[0]}</b><br>steps %{customdata[1]:,d} to %{customdata[2]:,d}"
        "<br>%{customdata[3]}<extra></extra>",
    }
