"""The data of a comparison: the runs, their curves on the common axis, and the healthy runs of their projects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from client_sdk.answers import Buckets, Event, RunDetail, RunSummary, Series
from client_sdk.vocabulary import LOSS, EventKind, RunState
from dashboard.client import ApiClient, ApiRefusedError
from dashboard.figures.run_curves import RunAxis, step_places, time_places, token_places
from dashboard.models import Heatmap
from dashboard.pages.comparison import EVENTS, Comparison

RATIO: Final = "stability_ratio"
AXIS_SCALARS: Final[Mapping[str, str]] = {"time": "step_time", "tokens": "tokens"}
"""Scalar from which the horizontal axis is read, keyed by the name of the axis."""
POINTS: Final = 600
AXIS_POINTS: Final = 4_000
COLUMNS: Final = 300
MAX_HEALTHY: Final = 20
"""Number of the newest healthy runs from which an envelope is made."""
TROUBLES: Final = (EventKind.SPIKE, EventKind.NONFINITE)
"""Events that a healthy run has none of."""
STAT_ORDER: Final = ("rms_ratio", "grad_norm", "update_ratio")


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison with everything that is drawn of it."""

    detail: RunDetail
    axis: RunAxis | None
    """Places of its steps; None if it lacks the scalar of the axis, or the event at which the runs are aligned."""
    lacks: str
    """Why it has no axis; "" if it has one."""
    series: Mapping[str, Buckets]
    heatmap: Heatmap | None = None


async def read_detail(client: ApiClient, run_id: str) -> RunDetail | None:
    """Return a run, or None if there is none with this id. Raises `ApiError`."""
    try:
        return await client.run(run_id)
    except ApiRefusedError as error:
        if error.status in (404, 410):
            return None
        raise


async def read_run(client: ApiClient, detail: RunDetail, wanted: Comparison, *, stat: str | None) -> ComparedRun:
    """Return a run with its curves. ``stat``: statistic of its heatmap; None for none. Raises `ApiError`."""
    if detail.last_step is None:
        return ComparedRun(detail=detail, axis=None, lacks="has no steps yet", series={})
    whole, events = await asyncio.gather(
        _axis_series(client, detail, wanted.axis),
        client.events(detail.id) if wanted.start in EVENTS else _no_events(),
    )
    axis, lacks = _axis(detail, wanted, whole, events)
    if axis is None:
        return ComparedRun(detail=detail, axis=None, lacks=lacks, series={})
    step_from, step_to = shown_steps(axis, wanted.zoom)
    series, heatmap = await asyncio.gather(
        _curves(client, detail, wanted.metric, step_from, step_to),
        _heatmap(client, detail, stat, step_from, step_to),
    )
    return ComparedRun(detail=detail, axis=axis, lacks="", series=series.series, heatmap=heatmap)


async def healthy_runs(
    client: ApiClient, runs: Iterable[RunSummary], compared: Sequence[RunSummary]
) -> list[RunSummary]:
    """Return the newest finished runs of the compared runs' projects that came to their end without any trouble."""
    projects = {run.project for run in compared}
    own = {run.id for run in compared}
    ended = [run for run in runs if run.project in projects and run.id not in own and _ended_well(run)]
    ended.sort(key=lambda run: run.created_at, reverse=True)
    candidates = ended[: 2 * MAX_HEALTHY]
    events = await asyncio.gather(*(client.events(run.id) for run in candidates))
    calm = [run for run, found in zip(candidates, events, strict=True) if not _has_trouble(found)]
    return calm[:MAX_HEALTHY]


def statistics_of(runs: Iterable[RunDetail]) -> list[str]:
    """Return the statistics that any of the runs has, the most informative first."""
    known = list(dict.fromkeys(name for run in runs for name in run.statistics))
    first = [name for name in STAT_ORDER if name in known]
    return first + [name for name in known if name not in first]


def shown_steps(axis: RunAxis, zoom: tuple[float, float] | None) -> tuple[int | None, int | None]:
    """Return the first and last step of a run that a zoom shows; None for all of them."""
    if zoom is None:
        return None, None
    low, high = max(int(axis.step_at(zoom[0])), 0), int(axis.step_at(zoom[1])) + 1
    return low, max(high, low)


async def _axis_series(client: ApiClient, run: RunDetail, axis: str) -> Buckets | None:
    name = AXIS_SCALARS.get(axis)
    if name is None or name not in run.scalars:
        return None
    found = await client.series(run.id, (name,), step_from=None, step_to=None, points=AXIS_POINTS)
    return found.series.get(name)


def _axis(
    run: RunDetail, wanted: Comparison, whole: Buckets | None, events: Sequence[Event]
) -> tuple[RunAxis | None, str]:
    """Return the axis of a run, and why it has none."""
    first = min((item.first_step for item in run.attempts), default=0)
    last = run.last_step or 0
    axis: RunAxis | None
    if wanted.axis == "time":
        axis, lacks = time_places(whole), "logs no step_time"
    elif wanted.axis == "tokens":
        axis, lacks = token_places(whole), "logs no tokens"
    else:
        axis, lacks = step_places(first, last), ""
    if axis is None:
        return None, lacks
    if wanted.start == "start":
        return axis.moved(float(axis.places[0])), ""
    if wanted.start in EVENTS:
        step = next((event.step for event in events if event.kind == wanted.start), None)
        if step is None:
            return None, f"has had no {EVENTS[wanted.start]}"
        return axis.moved(float(axis.at(np.array([float(step)]))[0])), ""
    return axis, ""


async def _curves(client: ApiClient, run: RunDetail, metric: str, step_from: int | None, step_to: int | None) -> Series:
    keys = tuple(key for key in dict.fromkeys((metric, RATIO)) if key == LOSS or key in run.scalars)
    if not keys:
        return Series()
    return await client.series(run.id, keys, step_from=step_from, step_to=step_to, points=POINTS)


async def _heatmap(
    client: ApiClient, run: RunDetail, stat: str | None, step_from: int | None, step_to: int | None
) -> Heatmap | None:
    if stat is None or stat not in run.statistics:
        return None
    return await client.heatmap(run.id, stat, step_from=step_from, step_to=step_to, columns=COLUMNS, reduce="max")


async def _no_events() -> list[Event]:
    return []


def _ended_well(run: RunSummary) -> bool:
    return run.state == RunState.FINISHED and run.ended_with is None and run.last_step is not None


def _has_trouble(events: Iterable[Event]) -> bool:
    return any(event.kind in TROUBLES for event in events)
