"""The page of one run: fetches the visible steps and draws the panels."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import plotly.graph_objects as go
from dash import ALL, Dash, Input

from client_sdk.answers import Alert, Event, Histogram, RunAudit, RunDetail, RunSummary, Series
from client_sdk.vocabulary import LOSS, AlertKind, EventKind, RunState
from dashboard import ids
from dashboard.client import ApiClient, ApiRefusedError
from dashboard.figures.curvature import CURVES, HEIGHT, STRIP_HEIGHT, curvature_figure, has_curvature
from dashboard.figures.forecast_path import forecast_figure, forecast_height, path_rows
from dashboard.figures.heatmap import heatmap_figure, heatmap_height, layer_at
from dashboard.figures.held_loss import HELD_LOSS, held_loss
from dashboard.figures.histogram import histogram_figure
from dashboard.figures.histograms_over_time import histograms_figure
from dashboard.figures.layer_curve import layer_figure
from dashboard.figures.layer_rows import RowChoice
from dashboard.figures.loss import loss_figure
from dashboard.figures.marks import Marks, marks_of
from dashboard.figures.scales import statistic
from dashboard.figures.stage_strip import spans
from dashboard.figures.theme import Frame, palette
from dashboard.models import Heatmap
from dashboard.numbers import compact, rate
from dashboard.pages import loss_choice, replay, run_audit, run_drawer, run_panels
from dashboard.pages import run_components as components
from dashboard.pages.alert_actions import ALERT_ACTIONS
from dashboard.pages.alert_cards import column, is_silenced, urgency
from dashboard.pages.danger import banner, endangering
from dashboard.pages.evidence import growth_per_step, mode_growth_per_step
from dashboard.pages.run_notes import FRESHNESS, RHYTHM, curvature_note, layers_note, loss_note
from dashboard.pages.symbols import symbols
from dashboard.shell.clientside import clientside
from dashboard.shell.page import NavigationEntry, Page
from dashboard.stream.feed import News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.view import MORE_PANELS, View

POINTS, NARROW_POINTS = 800, 360
COLUMNS, NARROW_COLUMNS = 600, 300
LOSS_HEIGHT, HELD_HEIGHT = 168, 224  # pixels of the loss panel; the second is for two lines on one axis
MIN_WIDTH: Final = 40  # steps; keeps the axis still at the beginning of a run
DETAIL_EVERY: Final = 15.0  # seconds between requests for the names of layers and scalars


@dataclass(kw_only=True)
class Known:
    """Data of the run, apart from its curves."""

    detail: RunDetail
    """The run with the names of its layers, scalars and statistics."""
    summary: RunSummary
    """The newest summary of the run."""
    alerts: dict[str, Alert] = field(default_factory=dict)
    """Alerts of the run, keyed by id."""
    events: list[Event] = field(default_factory=list)
    """Events of the run."""
    fetched_at: float = 0.0
    """Monotonic time at which `detail` was fetched."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves, cells and histograms of the visible steps."""

    series: Series
    heatmap: Heatmap | None
    histograms: tuple[Histogram | None, Histogram | None] | None = None
    over_time: Sequence[Histogram] = ()
    """Histograms of r of the chosen layer over the visible steps."""
    cell: tuple[str, int] | None = None
    """Layer and step that were chosen; where a folded block was chosen, its layer with the extreme at the step."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The values that all figures of one refresh share."""

    run: RunDetail
    view: View
    series: Series
    marks: Marks
    frame: Frame


class RunLive:
    """Live part with one run."""

    def __init__(self, client: ApiClient, run_id: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self.run_id = run_id
        self._monotonic = monotonic
        self._known: Known | None = None
        self._missing = False
        self._mounted: set[str] = set()
        self._cards: str | None = None
        self._danger = repr(None)
        self._pickers: tuple[Any, ...] | None = None
        self._attempts: list[int] = []
        self._loss_line: tuple[Any, ...] | None = None
        self._loss_scalars: tuple[str, ...] = ()
        self._audit: RunAudit | None = None
        """Audit that the page shows."""
        self._audited_at: float | None = None
        self._drawer = 0
        """Number of the opening of the drawer that was filled last."""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Apply the news, fetch the visible steps and draw the page."""
        if self.run_id in news.deleted:
            self._missing = True
            return _no_such_run(self.run_id)
        try:
            known = await self._apply(news, view.drawer)
        except ApiRefusedError as error:
            if error.status == 404:
                self._missing = True
                return _no_such_run(self.run_id)
            raise
        curves = None
        if known.summary.last_step is not None:
            curves = await self._fetch(known, view)
        audit = await self._new_audit(known, news)
        drawn = await asyncio.to_thread(self._draw, known, view, curves, now)
        return drawn if audit is None else dataclasses.replace(drawn, updates=(*drawn.updates, audit))

    async def _new_audit(self, known: Known, news: News) -> Update | None:
        """Return the update of the section with the audit if it has changed; it is fetched now and then."""
        is_new = news.resync or news.events
        has_ended = known.summary.state != RunState.RUNNING and bool(news.runs)
        age = None if self._audited_at is None else self._monotonic() - self._audited_at
        if not (is_new or has_ended or age is None or age > DETAIL_EVERY):
            return None
        self._audited_at = self._monotonic()
        try:
            audit = await self._client.audit(self.run_id)
        except ApiRefusedError:
            return None  # a server before the audit
        if audit == self._audit:
            return None
        self._audit = audit
        children = run_audit.contents(audit, known.summary.project, self.run_id)
        return Update(component=ids.RUN_AUDIT, props={"children": children})

    def idle(self, view: View, now: float) -> Refresh:
        """Update the header and the age of the run."""
        if self._missing:
            return _no_such_run(self.run_id)
        if self._known is None:
            return Refresh(tone="muted", word="loading")
        updates = [Update(component=ids.RUN_HEAD, props={"children": _head(self._known, now)})]
        return _refresh(self._known.summary, updates, now)

    async def _apply(self, news: News, drawer: int) -> Known:
        """Bring the data of the run up to date and return it. ``drawer``: number of the opening of the drawer."""
        known = self._known
        if known is None or news.resync:
            detail, alerts, events = await asyncio.gather(
                self._client.run(self.run_id), self._client.alerts(self.run_id), self._client.events(self.run_id)
            )
            known = Known(
                detail=detail,
                summary=detail,
                alerts={alert.id: alert for alert in alerts},
                events=events,
                fetched_at=self._monotonic(),
            )
        else:
            if news.events or news.alerts:
                known.events = await self._client.events(self.run_id)
            new_names = not known.detail.statistics or self._monotonic() - known.fetched_at > DETAIL_EVERY
            numbers = {item.attempt for item in known.detail.attempts}
            new_names |= any(item.kind == EventKind.ROLLBACK and item.attempt not in numbers for item in known.events)
            is_opened = drawer > self._drawer
            has_changed = self.run_id in news.runs and known.summary.state != RunState.RUNNING
            if (new_names and known.summary.state == RunState.RUNNING) or is_opened or has_changed:
                known.detail = known.summary = await self._client.run(self.run_id)
                known.fetched_at = self._monotonic()
            known.alerts.update(news.alerts)
            known.summary = news.runs.get(self.run_id, known.summary)
            known.detail = _newest(known)
        self._known = known
        return known

    async def _fetch(self, known: Known, view: View) -> Curves:
        """Fetch the curves, the heatmap and, if a cell is chosen, its histograms."""
        step_from, step_to = visible_steps(last_step_of(known.detail, known.summary, view), view)
        attempt = components.chosen_attempt(known.detail, view.attempt)
        rhythm = [name for name in (*RHYTHM, *FRESHNESS) if name in known.detail.scalars]
        metric = components.chosen_metric(known.detail, view.metric)
        more = [name for name in components.more_metrics(known.detail, view.more, metric) if name is not None]
        keys = tuple(dict.fromkeys((metric, *more, HELD_LOSS, *CURVES, *rhythm)))
        points, columns = (NARROW_POINTS, NARROW_COLUMNS) if view.narrow else (POINTS, COLUMNS)
        series, heatmap = await asyncio.gather(
            self._client.series(
                self.run_id, keys, step_from=step_from, step_to=step_to, points=points, attempt=attempt
            ),
            self._cells(known, view, step_from, step_to, columns),
        )
        cell = view.cell
        if cell is not None and heatmap is not None:
            stat = components.chosen_stat(known.detail, view.stat)
            layer = layer_at(heatmap, *cell, stat=stat, scale=view.scale, reduce=view.reduce)
            cell = (layer, cell[1]) if layer is not None else None
        histograms, over_time = await asyncio.gather(
            self._histograms(cell), self._histograms_over_time(cell, step_from, step_to)
        )
        return Curves(series=series, heatmap=heatmap, histograms=histograms, over_time=over_time, cell=cell)

    async def _cells(
        self, known: Known, view: View, step_from: int | None, step_to: int | None, columns: int
    ) -> Heatmap | None:
        if not known.detail.statistics:
            return None
        stat = components.chosen_stat(known.detail, view.stat)
        return await self._client.heatmap(
            self.run_id,
            stat,
            step_from=step_from,
            step_to=step_to,
            columns=columns,
            reduce=view.reduce,
            attempt=components.chosen_attempt(known.detail, view.attempt),
        )

    async def _histograms(self, cell: tuple[str, int] | None) -> tuple[Histogram | None, Histogram | None] | None:
        if cell is None:
            return None
        layer, step = cell
        found: list[Histogram | None] = []
        for which in ("update", "ratio"):
            try:
                found.append(await self._client.histogram(self.run_id, layer, which, step))
            except ApiRefusedError:
                found.append(None)
        return found[0], found[1]

    async def _histograms_over_time(
        self, cell: tuple[str, int] | None, step_from: int | None, step_to: int | None
    ) -> list[Histogram]:
        if cell is None:
            return []
        try:
            return await self._client.histograms(self.run_id, cell[0], "ratio", step_from=step_from, step_to=step_to)
        except ApiRefusedError:  # a server of an earlier version has no such call
            return []

    def _draw(self, known: Known, view: View, curves: Curves | None, now: float) -> Refresh:
        """Return the updates of all components. Called in a thread."""
        summary = known.summary
        alerts = list(known.alerts.values())
        marks = marks_of(alerts, known.events, components.chosen_attempt(known.detail, view.attempt))
        updates = [
            Update(component=ids.RUN_HEAD, props={"children": _head(known, now)}),
            Update(component=ids.RUN_KPIS, props={"children": components.kpis(summary)}),
            Update(component=ids.RUN_EMPTY, props={"className": "hidden" if curves is not None else ""}),
            Update(component=ids.RUN_PANELS, props={"className": f"run-body{'' if curves is not None else ' hidden'}"}),
        ]
        if view.drawer > self._drawer:
            self._drawer = view.drawer
            updates.append(
                Update(component=ids.RUN_DETAILS, props={"children": run_drawer.contents(known.detail, now)})
            )
        states = (summary.state, summary.stage_reason, summary.attempt)
        updates += self._loss_updates(known.detail)
        grave = endangering(alerts, summary.state)
        danger = None if grave is None else banner(grave, _newest(known), now)
        if repr(danger) != self._danger:
            self._danger = repr(danger)
            updates.append(Update(component=ids.RUN_DANGER, props={"children": danger}))
        cards = repr((known.alerts, states, [is_silenced(alert, now) for alert in alerts], marks.numbers))
        if cards != self._cards:
            self._cards = cards
            updates.append(
                Update(
                    component=ids.ALERT_COLUMN,
                    props={
                        "children": column(
                            alerts,
                            summary.state,
                            now,
                            not_judged=summary.reason_words,
                            attempt=summary.attempt,
                            above=None if grave is None else grave.id,
                            numbers=marks.numbers,
                        )
                    },
                )
            )
        if curves is not None:
            updates += self._panels(known, view, curves, alerts, marks)
        return _refresh(summary, updates, now)

    def _loss_updates(self, run: RunDetail) -> list[Update]:
        """Return the updates of the line with the loss, and of its form if there are new scalars."""
        line = (run.loss_words, run.loss_note, run.loss_choice)
        updates = []
        if run.scalars and line != self._loss_line:
            self._loss_line = line
            updates.append(Update(component=ids.LOSS_LINE, props={"children": loss_choice.line(run)}))
        if run.scalars != self._loss_scalars:
            self._loss_scalars = run.scalars
            updates.append(Update(component=ids.LOSS_FORM, props={"children": loss_choice.editor(run)}))
            updates.append(Update(component=ids.RUN_LOSS, props={"className": "loss-choice"}))
        return updates

    def _panels(self, known: Known, view: View, curves: Curves, alerts: list[Alert], marks: Marks) -> list[Update]:
        attempt = components.chosen_attempt(known.detail, view.attempt)
        events = known.events if attempt is None else [item for item in known.events if item.attempt == attempt]
        last_step = max(last_step_of(known.detail, known.summary, view), curves.series.step_to or 0)
        frame = make_frame(curves.series, marks, view, last_step)
        series = curves.series.series
        open_prediction = next(
            (
                a
                for a in alerts
                if a.is_open and a.kind == AlertKind.SPIKE_PREDICTED and a.predicted_step == marks.expected
            ),
            None,
        )
        growth = growth_per_step(open_prediction.evidence) if open_prediction is not None else None
        stat = components.chosen_stat(known.detail, view.stat)
        metric = components.chosen_metric(known.detail, view.metric)
        is_loss = metric == (known.detail.loss_name or LOSS)
        amplitude = mode_growth_per_step(open_prediction.evidence) if open_prediction is not None else None
        held = held_loss(series.get(HELD_LOSS), series.get(metric), growth=amplitude) if is_loss else None
        loss = loss_figure(
            series.get(metric),
            marks,
            frame,
            name=metric,
            held=held,
            scale=view.axes.get("loss", ""),
            smoothing=view.smoothing.get("loss", 0),
        )
        curvature = curvature_figure(series, spans(events, last_step), marks, frame, growth_per_step=growth)
        choice = RowChoice(order=view.order, search=view.search, unfolded=view.unfolded, leading=_leading(alerts))
        cells = heatmap_figure(
            curves.heatmap, marks, frame, stat=stat, scale=view.scale, reduce=view.reduce, choice=choice
        )
        is_curved = has_curvature(series)
        path = path_rows(alerts, attempt)
        heights = {
            "loss": HELD_HEIGHT if HELD_LOSS in known.detail.scalars and is_loss else LOSS_HEIGHT,
            "curvature": HEIGHT if is_curved else STRIP_HEIGHT,
            "layers": heatmap_height(len(cells.layout.meta)),
            "forecast": forecast_height(path),
        }
        forecast = forecast_figure(path, marks, frame) if path else None
        more = components.more_metrics(known.detail, view.more, metric)
        said = loss_note(known.detail, curves.series, metric, marks, held=held, scale=view.axes.get("loss", ""))
        drawn = Drawn(run=known.detail, view=view, series=curves.series, marks=marks, frame=frame)
        updates = [
            *(self._resized(name, height) for name, height in heights.items()),
            *self._shown("loss", loss),
            *(update for slot, name in enumerate(more) for update in self._further(slot, name, drawn)),
            *self._shown("forecast", forecast),
            *self._shown("curvature", curvature),
            *self._shown("layers", cells),
            _note("loss", said),
            _title("loss", "Loss" if is_loss else metric),
            _note("curvature", curvature_note(curves.series)),
            _title("curvature", "Curvature against the limit 2/η" if is_curved else "Stage"),
            _note("layers", layers_note(stat, view.scale, curves.series)),
        ]
        pickers = (known.detail.statistics, known.detail.scalars, known.detail.loss_name)
        if pickers != self._pickers:
            self._pickers = pickers
            updates.append(Update(component=ids.STAT_PICK, props={"children": components.stat_options(known.detail)}))
            updates.append(
                Update(component=ids.METRIC_PICK, props={"children": components.metric_options(known.detail)})
            )
            updates += [
                Update(component=ids.metric_pick(slot), props={"children": components.more_options(known.detail)})
                for slot in range(MORE_PANELS)
            ]
        attempts = sorted({item.attempt for item in known.detail.attempts})
        if attempts != self._attempts:
            self._attempts = attempts
            hidden = "" if len(attempts) > 1 else " hidden"
            options = components.attempt_options(known.detail)
            updates.append(Update(component=ids.ATTEMPT_PICK, props={"children": options}))
            updates.append(Update(component=ids.ATTEMPT_CONTROL, props={"className": f"control select{hidden}"}))
        return [*updates, *self._layer(curves, drawn, stat), *_histogram_updates(curves, frame)]

    def _further(self, slot: int, name: str | None, drawn: Drawn) -> list[Update]:
        """Return the updates of a further panel of one scalar, which is hidden if the name is None."""
        panel = ids.more(slot)
        if name is None:
            return self._shown(panel, None)
        axis = drawn.view.axes.get(panel, "")
        figure = loss_figure(
            drawn.series.series.get(name),
            drawn.marks,
            drawn.frame,
            name=name,
            scale=axis,
            smoothing=drawn.view.smoothing.get(panel, 0),
            labelled=False,
        )
        words = loss_note(drawn.run, drawn.series, name, drawn.marks, scale=axis)
        return [*self._shown(panel, figure), _title(panel, name), _note(panel, words)]

    def _layer(self, curves: Curves, drawn: Drawn, stat: str) -> list[Update]:
        """Return the updates of the panel of the chosen layer."""
        if curves.cell is None or curves.heatmap is None or curves.cell[0] not in curves.heatmap.layers:
            return [*self._shown("layer", None), *self._shown("over-time", None)]
        layer, step = curves.cell
        kind = statistic(stat)
        figure = layer_figure(curves.heatmap, layer, step, drawn.marks, drawn.frame, name=kind.label)
        words = f"{kind.label}: {kind.meaning} · dashed: step {step:,}"
        over_time = histograms_figure(curves.over_time, step, drawn.frame) if len(curves.over_time) > 1 else None
        return [
            *self._shown("layer", figure),
            *self._shown("over-time", over_time),
            _title("layer", layer),
            _note("layer", words),
        ]

    def _shown(self, name: str, figure: go.Figure | None) -> list[Update]:
        """Return the updates that draw a panel, or that hide it if the figure is None."""
        if name in self._mounted and figure is not None:
            return [Update(component=ids.panel(name), props={"figure": figure})]
        if figure is None:
            if name not in self._mounted:
                return []
            self._mounted.discard(name)
            return [
                Update(component=ids.panel_card(name), props={"className": run_panels.panel_class(name, hidden=True)}),
                Update(component=ids.panel_box(name), props={"children": []}),
            ]
        self._mounted.add(name)
        return [
            Update(component=ids.panel_card(name), props={"className": run_panels.panel_class(name, hidden=False)}),
            Update(component=ids.panel_box(name), props={"children": run_panels.graph(ids.panel(name), figure)}),
        ]

    @staticmethod
    def _resized(name: str, height: int) -> Update:
        return Update(component=ids.panel_box(name), props={"style": {"height": f"{height}px"}})


def _leading(alerts: list[Alert]) -> tuple[str, ...]:
    """Return the leading layers of the most urgent open alert that names any."""
    named = [alert for alert in alerts if alert.is_open and alert.layers]
    return max(named, key=urgency).layers if named else ()


def _note(name: str, words: str) -> Update:
    return Update(component=ids.panel_note(name), props={"children": symbols(words), "title": words})


def _title(name: str, words: str) -> Update:
    return Update(component=ids.panel_title(name), props={"children": words})


def last_step_of(run: RunDetail, summary: RunSummary, view: View) -> int:
    """Return the last step of the attempt that the view shows."""
    attempt = components.chosen_attempt(run, view.attempt)
    if attempt is None:
        return summary.last_step or 0
    return max(item.last_step for item in run.attempts if item.attempt == attempt)


def visible_steps(last_step: int, view: View) -> tuple[int | None, int | None]:
    """Return the first and last step to fetch: the zoomed range, the newest `window` steps, or None for all."""
    if view.step_range is not None:
        return max(int(view.step_range[0]), 0), int(view.step_range[1]) + 1
    if view.window is not None and last_step > view.window:
        return last_step - view.window + 1, None
    return None, None


def make_frame(series: Series, marks: Marks, view: View, last_step: int) -> Frame:
    """Return the shared axis: the zoomed range, or the newest steps with room for the prediction."""
    if view.step_range is not None:
        low, high = view.step_range
    else:
        low = float(series.step_from if series.step_from is not None else 0)
        if view.window is not None:
            low = max(low, last_step - view.window)
        width = max(last_step - low, MIN_WIDTH)
        high = low + width * 1.03
        if marks.expected is not None and marks.expected.best <= last_step + max(width, 200):
            high = max(
                high, marks.expected.best + 0.1 * width, min(marks.expected.high + 0.04 * width, low + 2.5 * width)
            )
    return Frame(
        palette=palette(view.theme),
        step_from=low,
        step_to=high,
        narrow=view.narrow,
        revision=f"live {view.follows}" if view.step_range is None else f"{low:g}-{high:g}",
    )


def _head(known: Known, now: float) -> list[Any]:
    return components.head(known.detail, now)


def _newest(known: Known) -> RunDetail:
    """Return the run with the stage, the loss and the state of its newest summary."""
    names = (
        "name", "tags", "archived", "stage", "stage_reason", "loss_name", "loss_since", "loss_choice", "last_step",
        "state", "step_rate",
    )  # fmt: skip
    return msgspec.structs.replace(known.detail, **{name: getattr(known.summary, name) for name in names})


def _histogram_updates(curves: Curves, frame: Frame) -> list[Update]:
    if curves.histograms is None or curves.cell is None:
        return []
    update, ratio = curves.histograms
    words = f"{curves.cell[0]}: none recorded near step {curves.cell[1]:,}"
    if update is not None and update.step is not None:
        words = f"{update.layer} at step {update.step:,}"
        if ratio is not None and ratio.dip is not None:
            words += f" · dip of r {compact(ratio.dip)}"
    return [
        Update(component=ids.HISTOGRAM_CARD, props={"className": "card panel"}),
        Update(component=ids.HISTOGRAM_TITLE, props={"children": words}),
        *(
            Update(
                component=ids.histogram(which),
                props={"children": run_panels.graph({"histogram": which}, histogram_figure(found, frame))},
            )
            for which, found in (("update", update), ("ratio", ratio))
        ),
    ]


def _refresh(summary: RunSummary, updates: list[Update], now: float) -> Refresh:
    pace = rate(summary.step_rate)
    detail = components.step_words(summary, pace)
    if summary.state == RunState.RUNNING:
        return Refresh(updates=updates, detail=detail)
    if summary.state == RunState.STALE:
        return Refresh(updates=updates, tone="warn", word="stale", detail=components.stale_words(summary, now))
    tone = "danger" if summary.state == RunState.CRASHED or summary.ended_words else "muted"
    word = ": ".join(part for part in (summary.state, summary.ended_words) if part)
    return Refresh(updates=updates, tone=tone, word=word, detail=components.step_words(summary, ""))


def _no_such_run(run_id: str) -> Refresh:
    return Refresh(
        updates=(
            Update(component=ids.RUN_PANELS, props={"className": "hidden"}),
            Update(component=ids.RUN_KPIS, props={"children": []}),
            Update(component=ids.RUN_HEAD, props={"children": components.no_such_run(run_id)}),
        ),
        tone="muted",
        word="no such run",
    )


def _register_callbacks(app: Dash) -> None:
    clientside(app, "zoom", Input({"panel": ALL}, "relayoutData"))
    clientside(app, "cell", Input({"panel": ALL}, "clickData"))
    clientside(app, "fold", Input({"panel": ALL}, "clickAnnotationData"))


PAGE: Final = Page(
    name="run",
    path="/runs/{run_id}",
    navigation=NavigationEntry(label="Run", order=2),
    layout=components.layout,
    live=lambda client, request: RunLive(client, request.subject),
    actions={
        **ALERT_ACTIONS,
        **loss_choice.ACTIONS,
        **replay.ACTIONS,
        **run_audit.ACTIONS,
        **run_drawer.ACTIONS,
    },
    callbacks=_register_callbacks,
)
