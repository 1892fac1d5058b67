"""The page that compares runs. Its address holds the whole comparison; a reload and the Back button keep it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go
from dash import ALL, Dash, Input

from client_sdk.answers import RunDetail, RunSummary
from client_sdk.vocabulary import LOSS, RunState
from dashboard.client import ApiClient
from dashboard.figures.overlay import extent, overlay_figure
from dashboard.figures.run_curves import Envelope, RunCurve, envelope, left_envelope, run_curve
from dashboard.figures.scales import statistic
from dashboard.figures.small_multiples import RunHeatmap, multiples_figure, multiples_height
from dashboard.figures.theme import Frame, palette
from dashboard.numbers import compact
from dashboard.pages import compare_parts as parts
from dashboard.pages.compare_data import (
    RATIO,
    ComparedRun,
    healthy_runs,
    read_detail,
    read_run,
    statistics_of,
)
from dashboard.pages.comparison import EVENTS, Comparison, parse_comparison
from dashboard.pages.config_differences import difference_table
from dashboard.pages.run_titles import distinct_titles
from dashboard.pages.symbols import symbols
from dashboard.shell.clientside import clientside
from dashboard.shell.page import NavigationEntry, Page
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import View

UNITS: Final[Mapping[str, str]] = {"step": "step", "time": "minutes of training", "tokens": "tokens"}
ALIGNED_UNITS: Final[Mapping[str, str]] = {"step": "steps", "time": "minutes of training", "tokens": "tokens"}
ENDED: Final = (RunState.FINISHED, RunState.CRASHED)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Everything that is drawn of a comparison."""

    wanted: Comparison
    runs: tuple[ComparedRun, ...]
    missing: tuple[str, ...]
    healthy: tuple[ComparedRun, ...]
    stat: str | None
    """Statistic of the heatmaps; None if no run has measured its layers."""


class CompareLive:
    """Live part with the compared runs. Runs that have ended are read once for each view of them."""

    run_id = None

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._runs: dict[str, RunSummary] = {}
        self._details: dict[str, RunDetail] = {}
        self._read: dict[str, tuple[Any, ComparedRun]] = {}
        self._healthy: tuple[Any, tuple[ComparedRun, ...]] | None = None
        self._shown: tuple[Any, ...] | None = None
        self._mounted: dict[str, int] = {}
        self._sent: dict[str, str] = {}

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Read what the address or the news have changed and draw it."""
        wanted = parse_comparison(view.query)
        if news.resync or not self._runs:
            self._runs = {run.id: run for run in await self._client.runs()}
            self._details, self._read, self._healthy, self._shown = {}, {}, None, None
        self._runs.update(news.runs)
        for run_id in news.runs.keys() & set(wanted.runs):
            self._details.pop(run_id, None)
            self._read.pop(run_id, None)
            self._shown = None
        shown = (view.query, view.theme, view.narrow)
        if shown == self._shown:
            return self.idle(view, now)
        drawn = await self._fetch(wanted)
        updates = await asyncio.to_thread(self._draw, drawn, view)
        self._shown = shown
        return Refresh(updates=updates, detail=_detail(drawn))

    def idle(self, view: View, now: float) -> Refresh:
        """Return the header without updates."""
        count = len(self._read)
        return Refresh(detail=f"{count} run{'' if count == 1 else 's'}")

    async def _fetch(self, wanted: Comparison) -> Drawn:
        unread = [run for run in wanted.runs if run not in self._details]
        for run, detail in zip(
            unread, await asyncio.gather(*(read_detail(self._client, run) for run in unread)), strict=True
        ):
            if detail is not None:
                self._details[run] = detail
        details = [self._details[run] for run in wanted.runs if run in self._details]
        names = statistics_of(details)
        stat = wanted.stat if wanted.stat in names else next(iter(names), None)
        request = (wanted.metric, wanted.axis, wanted.start, wanted.zoom, stat)
        runs = await asyncio.gather(*(self._of_run(detail, wanted, stat, request) for detail in details))
        self._read = {run.detail.id: (request, run) for run in runs}
        return Drawn(
            wanted=wanted,
            runs=tuple(runs),
            missing=tuple(run for run in wanted.runs if run not in self._details),
            healthy=await self._healthy_runs(wanted, details) if wanted.reference == "healthy" else (),
            stat=stat,
        )

    async def _of_run(self, detail: RunDetail, wanted: Comparison, stat: str | None, request: Any) -> ComparedRun:
        known = self._read.get(detail.id)
        if known is not None and known[0] == request:
            return known[1]
        return await read_run(self._client, detail, wanted, stat=stat)

    async def _healthy_runs(self, wanted: Comparison, details: Sequence[RunDetail]) -> tuple[ComparedRun, ...]:
        """Return the healthy runs, read anew only if the view of them or the number of ended runs changes."""
        ended = sum(run.state == RunState.FINISHED for run in self._runs.values())
        request = (wanted.runs, wanted.metric, wanted.axis, wanted.start, wanted.zoom, ended)
        if self._healthy is None or self._healthy[0] != request:
            found = await healthy_runs(self._client, self._runs.values(), details)
            full = await asyncio.gather(*(read_detail(self._client, run.id) for run in found))
            read = await asyncio.gather(
                *(read_run(self._client, run, wanted, stat=None) for run in full if run is not None)
            )
            self._healthy = request, tuple(run for run in read if run.axis is not None)
        return self._healthy[1]

    def _draw(self, drawn: Drawn, view: View) -> list[Update]:
        """Return the updates of all components. Called in a thread."""
        wanted = drawn.wanted
        titles = distinct_titles({**self._runs, **self._details}.values())
        # The list of runs to add would flicker while it is open, so only changes are sent.
        updates = [
            *self._if_changed(parts.RUNS, parts.chosen_runs(wanted, drawn.runs, drawn.missing, titles)),
            *self._if_changed(parts.ADD, parts.offered_runs(wanted, self._runs.values(), titles)),
            *self._if_changed(parts.METRICS, parts.metric_options(drawn.runs, wanted.metric)),
            *self._if_changed(parts.STATS, parts.stat_options(statistics_of([run.detail for run in drawn.runs]))),
            *self._if_changed(parts.WHOLE, parts.whole_link(wanted)),
            *self._if_changed(parts.TABLE, difference_table([run.detail for run in drawn.runs], titles)),
            *self._if_changed(parts.EMPTY, [] if drawn.runs else [parts.nothing_chosen(is_alone=not self._runs)]),
            Update(component=parts.EMPTY, props={"className": "hidden" if drawn.runs else ""}),
            Update(component=parts.PANELS, props={"className": f"compare-panels{'' if drawn.runs else ' hidden'}"}),
        ]
        return updates + self._curves(drawn, view, titles) + self._maps(drawn, view, titles) if drawn.runs else updates

    def _curves(self, drawn: Drawn, view: View, titles: Mapping[str, str]) -> list[Update]:
        wanted = drawn.wanted
        curves = _curves_of(drawn.runs, wanted.metric, wanted, titles)
        ratios = [curve for curve in _curves_of(drawn.runs, RATIO, wanted, titles) if curve.x.size]
        healthy = _curves_of(drawn.healthy, wanted.metric, wanted, titles)
        band = envelope(healthy) if wanted.reference == "healthy" else None
        frame = _frame(wanted, view, curves)
        unit = (UNITS if wanted.start == "logged" else ALIGNED_UNITS)[wanted.axis] + _origin(wanted)
        main = overlay_figure(curves, frame, unit=unit, band=band, scale=wanted.scale)
        updates = [
            *self._graph(parts.CURVES, main, 1),
            Update(component=parts.TITLE, props={"children": "Loss" if wanted.metric == LOSS else wanted.metric}),
            Update(component=parts.CURVES_NOTE, props={"children": _curves_note(drawn, curves, band)}),
        ]
        if not ratios:
            words = "No run of this comparison logs λ_max: pass `closure` to `log`."
            note = Update(component=parts.RATIO_NOTE, props={"children": symbols(words)})
            return [*updates, *self._without_graph(parts.RATIO), note]
        low = overlay_figure(ratios, frame, unit=unit, limit=1.0, scale=wanted.scale)
        words = "λ_max·η/2; above 1 a direction is unstable"
        note = Update(component=parts.RATIO_NOTE, props={"children": symbols(words)})
        return [*updates, *self._graph(parts.RATIO, low, 1), note]

    def _maps(self, drawn: Drawn, view: View, titles: Mapping[str, str]) -> list[Update]:
        wanted = drawn.wanted
        maps = [
            RunHeatmap(name=titles[run.detail.id], data=run.heatmap, axis=run.axis)
            for run in drawn.runs
            if run.heatmap is not None and run.axis is not None and run.heatmap.z.size
        ]
        if not maps or drawn.stat is None:
            words = "No run of this comparison has measured its layers: call `watch`."
            return [*self._without_graph(parts.MAPS), Update(component=parts.MAPS_NOTE, props={"children": words})]
        curves = _curves_of(drawn.runs, wanted.metric, wanted, titles)
        found = multiples_figure(
            maps, _frame(wanted, view, curves), stat=drawn.stat, colours=wanted.colours, unit=UNITS[wanted.axis]
        )
        height = {"height": f"{multiples_height(maps, narrow=view.narrow)}px"}
        note = f"one colour scale for all · {statistic(drawn.stat).meaning}"
        return [
            *self._graph(parts.MAPS, found, len(maps)),
            Update(component=parts.MAPS, props={"style": height}),
            Update(component=parts.MAPS_NOTE, props={"children": note}),
        ]

    def _graph(self, box: str, figure: go.Figure, shape: int) -> list[Update]:
        """Return the update that draws a figure. ``shape``: number of its panels; another one makes a new graph."""
        if self._mounted.get(box) == shape:
            return [Update(component={"compare": box}, props={"figure": figure})]
        self._mounted[box] = shape
        return [Update(component=box, props={"style": {}, "children": parts.graph(box, figure, shape)})]

    def _without_graph(self, box: str) -> list[Update]:
        self._mounted.pop(box, None)
        return [Update(component=box, props={"children": [], "style": {"height": "0px"}})]

    def _if_changed(self, component: str, children: Any) -> list[Update]:
        words = repr(children)
        if self._sent.get(component) == words:
            return []
        self._sent[component] = words
        return [Update(component=component, props={"children": children})]


def _curves_of(
    runs: Sequence[ComparedRun], metric: str, wanted: Comparison, titles: Mapping[str, str]
) -> list[RunCurve]:
    places = {run: place for place, run in enumerate(wanted.runs)}
    return [
        run_curve(run.series.get(metric), run.axis, name=titles[run.detail.id], place=places.get(run.detail.id, 0))
        for run in runs
        if run.axis is not None
    ]


def _frame(wanted: Comparison, view: View, curves: Sequence[RunCurve]) -> Frame:
    low, high = extent(curves) if wanted.zoom is None else wanted.zoom
    return Frame(
        palette=palette(view.theme),
        step_from=low,
        step_to=high,
        narrow=view.narrow,
        revision="live" if wanted.zoom is None else f"{low:g}-{high:g}",
    )


def _origin(wanted: Comparison) -> str:
    if wanted.start in EVENTS:
        return f" since the first {EVENTS[wanted.start]}"
    return " since the start" if wanted.start == "start" else ""


def _curves_note(drawn: Drawn, curves: Sequence[RunCurve], band: Envelope | None) -> str:
    """Return what the panel leaves out, what the grey band is, and which runs have left it."""
    left_out = [run for run in drawn.runs if run.axis is None]
    said = []
    if left_out:
        said.append(f"{len(left_out)} not drawn, see the list")
    silent = [curve.name for curve in curves if not curve.x.size]
    if silent:
        said.append(f"not logged by {', '.join(silent)}")
    if drawn.wanted.reference == "healthy":
        if band is None:
            said.append("no envelope: it needs two finished runs of the project without a spike")
        else:
            said.append(f"grey: lowest to highest of {band.runs} finished healthy runs, dotted: their median")
            said += _departures(drawn, curves, band)
    return " · ".join(said)


def _departures(drawn: Drawn, curves: Sequence[RunCurve], band: Envelope) -> list[str]:
    """Return which runs are above the envelope now; the ended ones only if none goes on."""
    states = {drawn.wanted.runs.index(run.detail.id): run.detail.state for run in drawn.runs}
    live = [curve for curve in curves if states[curve.place] not in ENDED]
    said = []
    for curve in live or curves:
        since = left_envelope(curve, band)
        if since is not None:
            said.append(f"{curve.name} is above them since {UNITS[drawn.wanted.axis].split()[0]} {compact(since)}")
    return said


def _detail(drawn: Drawn) -> str:
    count = len(drawn.runs)
    return f"{count} run{'' if count == 1 else 's'}"


def _register_callbacks(app: Dash) -> None:
    clientside(app, "compareZoom", Input({"compare": ALL}, "relayoutData"))


PAGE: Final = Page(
    name="compare",
    path="/compare",
    navigation=NavigationEntry(label="Compare", order=3),
    layout=parts.layout,
    live=lambda client, _request: CompareLive(client),
    callbacks=_register_callbacks,
)
