"""Alerts as cards: headline, explanation, evidence, advice and buttons. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from dash import dcc, html
from dash.development.base_component import Component

from client_sdk.answers import Alert
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel, AlertState, Cause, RunState
from dashboard.forms.attributes import aria, data
from dashboard.numbers import count, duration, ellipsis, unix_time
from dashboard.pages.evidence import lines
from dashboard.pages.symbols import symbols

HISTORY_SHOWN: Final = 30
SILENCE_MINUTES: Final = 60
FORECASTS_SHOWN: Final = 6
"""Number of forecasts up to which a card shows all of them."""
OUTCOMES: Final = {"hit": "hit", "early": "came early", "late": "came late", "false": "did not come"}
EVIDENCE_SHOWN: Final = 4
"""Number of lines of evidence that a card shows unfolded."""
ENDED_SO: Final = "run ended so"
"""Result of an alert that lasted until its run ended."""


def column(
    alerts: Sequence[Alert],
    run_state: str,
    now: float,
    *,
    not_judged: str = "",
    attempt: int = 0,
    above: str | None = None,
    numbers: Mapping[str, int] | None = None,
) -> list[Component]:
    """Return the column of a run: the most urgent open alert in full, layers, other open alerts and the history.

    The alerts that a run ended with in its last ``attempt`` stand in the place of open ones. ``not_judged`` is the
    sentence that says why the run is not judged, "" if it is. ``above`` is the id of the alert whose buttons stand
    above the panels, and not here too. ``numbers`` are the numbers of the spikes in the panels, keyed by alert.
    """
    has_ended = run_state in (RunState.FINISHED, RunState.CRASHED)

    def lasts(alert: Alert) -> bool:
        return alert.is_open or (has_ended and alert.state == AlertState.ENDED and alert.attempt == attempt)

    still_open = sorted((alert for alert in alerts if lasts(alert)), key=urgency, reverse=True)
    settled = sorted((alert for alert in alerts if not lasts(alert)), key=lambda alert: alert.step, reverse=True)
    parts: list[Component] = []
    if still_open:
        first = still_open[0]
        own = None if first.id == above else buttons(first, now)
        parts.append(_open_card(first, None if first.advice else own))
        if first.advice:
            parts.append(html.Section([*_advice(first), own], className="card advice-card"))
        shares = next((alert for alert in still_open if alert.layer_shares), None)
        if shares is not None:
            parts.append(_layers_card(shares))
        parts += [_small_card(alert, now) for alert in still_open[1:]]
    else:
        parts.append(_calm_card(run_state, not_judged))
    if settled:
        parts.append(_history_card(settled, numbers or {}))
    return parts


def urgency(alert: Alert) -> tuple[int, int, int]:
    """Return a sort key: unacknowledged alerts are most urgent, then by level, predictions, and the newest."""
    unseen = 10 if alert.state == AlertState.OPEN else 0
    return unseen + LEVEL_RANK.get(alert.level, 0), int(alert.kind == AlertKind.SPIKE_PREDICTED), alert.step


def is_silenced(alert: Alert, now: float) -> bool:
    """Return whether notifications about an alert are silenced."""
    until = unix_time(alert.silenced_until)
    return until is not None and until > now


def headline(alert: Alert) -> tuple[str, str]:
    """Return the predicted step and its range in words, or the title of another alert and ""."""
    if alert.kind == AlertKind.SPIKE_PREDICTED and alert.predicted_step is not None:
        date = alert.predicted_step
        return f"Step {count(date.best)}", f"between {count(date.low)} and {count(date.high)}"
    return alert.title or kind_words(alert), ""


def kind_words(alert: Alert) -> str:
    """Return the kind of an alert in words."""
    return alert.kind.replace("-", " ")


def single(alert: Alert, run_name: str, now: float) -> list[Component]:
    """Return the page of one alert: the link to its run, buttons if it is open, and the full card."""
    words = f"Open the run {run_name} at step {count(alert.step)}"
    parts: list[Component | None] = [
        html.P(dcc.Link(words, href=f"/runs/{alert.run_id}?step={alert.step}"), className="lead"),
        buttons(alert, now) if alert.is_open else html.P(f"Settled: {result(alert)}", className="note"),
        _open_card(alert),
        html.Section(_advice(alert), className="card advice-card") if alert.advice and alert.is_open else None,
    ]
    return [part for part in parts if part is not None]


def _open_card(alert: Alert, buttons: Component | None = None) -> Component:
    title, band = headline(alert)
    return html.Section(
        [
            html.Div(
                [
                    html.Span(kind_words(alert), className=f"pill {tone(alert)}"),
                    html.Span(_state_words(alert), className="pill"),
                ],
                className="pills",
            ),
            html.H2([title, " ", html.Span(band, className="band")] if band else title, className="headline"),
            html.P(_why(alert), className="why"),
            _forecasts(alert),
            _evidence_table(alert),
            buttons,
        ],
        className=f"card alert {tone(alert)}",
        **aria(label=f"Alert: {title}"),
    )


def _state_words(alert: Alert) -> str:
    since = f"since step {count(alert.step)}"
    return f"{ENDED_SO}, {since}" if alert.state == AlertState.ENDED else f"{alert.state} {since}"


def _why(alert: Alert) -> list[Any]:
    cause = "" if alert.cause in ("", Cause.UNKNOWN) else alert.cause.replace("-", " ").capitalize() + ". "
    return [*symbols(cause), *_message(alert)] if cause else _message(alert)


def _message(alert: Alert) -> list[Any]:
    """Return the message, in which the names of other runs lead to them at the step in question."""
    said = alert.coincidence
    if said is None or not said.runs or said.sentence not in alert.message:
        return symbols(alert.message)
    before, after = alert.message.split(said.sentence, 1)
    parts, rest = symbols(before), said.sentence
    for run in said.runs:
        name = " ".join(run.name.split()) or run.run_id
        between, found, rest_after = rest.partition(name)
        if found:
            parts += [between, dcc.Link(name, href=f"/runs/{quote(run.run_id, safe='')}?step={run.step}")]
            rest = rest_after
    return [*parts, rest, *symbols(after)] if after else [*parts, rest]


def _forecasts(alert: Alert) -> Component | None:
    """Return what was said when: all forecasts of a prediction, or only the turning points of a long path."""
    path = alert.forecasts
    shown = path if len(path) <= FORECASTS_SHOWN else alert.turns
    if not shown:
        return None
    items = [
        html.Li(
            f"said at step {count(forecast.step)}: {count(forecast.best)} "
            f"({count(forecast.low)} to {count(forecast.high)}), {forecast.level}"
        )
        for forecast in shown
    ]
    left_out = len(path) - len(shown)
    return html.Div(
        [
            html.H3("Forecasts"),
            html.Ul(items, className="forecasts"),
            html.P(f"and {left_out} between them", className="note") if left_out else None,
        ]
    )


def _evidence_table(alert: Alert) -> Component | None:
    """Return the first lines of the evidence, and the others folded below them."""
    rows = [
        html.Tr([html.Th(line.label, scope="row"), html.Td(line.value, title=line.title or None)])
        for line in lines(alert)
    ]
    if not rows:
        return None
    first, rest = rows[:EVIDENCE_SHOWN], rows[EVIDENCE_SHOWN:]
    table = html.Table(html.Tbody(first), className="evidence")
    if not rest:
        return table
    more = html.Details(
        [html.Summary(f"{len(rest)} more", className="note"), html.Table(html.Tbody(rest), className="evidence")]
    )
    return html.Div([table, more])


def _advice(alert: Alert) -> list[Component]:
    return [
        html.H3("What to try"),
        html.P("best fit first; change one thing at a time", className="note"),
        html.Ol([html.Li(symbols(item)) for item in alert.advice], className="advice"),
    ]


def buttons(alert: Alert, now: float) -> Component:
    """Return the buttons of an open alert; none for an alert that the run ended with."""
    if not alert.is_open:
        return html.Div(className="buttons")
    acknowledge: Component = (
        html.Span("Acknowledged", className="done")
        if alert.state == AlertState.ACKNOWLEDGED
        else html.Button("Acknowledge", className="button", type="button", **data(verb="acknowledge", subject=alert.id))
    )
    silence: Component = (
        html.Span("Silenced", className="done", title="No notifications about this alert for now")
        if is_silenced(alert, now)
        else html.Button(
            "Silence 1 h",
            className="button",
            type="button",
            title="No notifications about this alert for an hour",
            **data(verb="silence", subject=alert.id),
        )
    )
    return html.Div([acknowledge, silence], className="buttons")


def _layers_card(alert: Alert) -> Component:
    known = [
        (layer, share) for layer, share in zip(alert.layers, alert.layer_shares, strict=False) if share is not None
    ]
    bars = [
        html.Li(
            [
                html.Span(ellipsis(layer, 30), className="layer-name", title=layer),
                html.Span(html.I(style={"width": f"{100 * max(min(share, 1.0), 0.0):.1f}%"}), className="share"),
                html.B(f"{100 * share:.0f} %"),
            ]
        )
        for layer, share in known[:6]
    ]
    return html.Section(
        [html.H3("Layer risk"), html.P("share of the growth", className="note"), html.Ul(bars, className="layers")],
        className="card",
    )


def _small_card(alert: Alert, now: float) -> Component:
    title, band = headline(alert)
    return html.Section(
        [
            html.Div(
                [
                    html.Span(kind_words(alert), className=f"pill {tone(alert)}"),
                    html.Span(_state_words(alert), className="pill"),
                ],
                className="pills",
            ),
            html.H3(f"{title} {band}".strip()),
            html.P(_message(alert), className="why"),
            buttons(alert, now),
        ],
        className="card small",
    )


def _calm_card(run_state: str, not_judged: str) -> Component:
    if not_judged:
        note = f"The run is not judged, so this proves nothing: {not_judged}."
        return html.Section([html.H3("No open alert"), html.P(note, className="note")], className="card calm")
    words: dict[str, str] = {
        RunState.RUNNING: (
            "Nothing to worry about. A predicted spike appears here with its step, its cause and what to try."
        ),
        RunState.STALE: "No open alert. Nothing has arrived for a while.",
        RunState.FINISHED: "No open alert. The run has finished.",
        RunState.CRASHED: "No open alert. The run has crashed.",
    }
    return html.Section(
        [html.H3("No open alert"), html.P(words.get(run_state, "").removeprefix("No open alert. "), className="note")],
        className="card calm",
    )


def _history_card(settled: Sequence[Alert], numbers: Mapping[str, int]) -> Component:
    items = [
        html.Li(
            [
                html.Span(html.I(className=f"level {tone(alert)}"), className="mark"),
                html.A(
                    [*_number(numbers.get(alert.id)), alert.title or kind_words(alert)],
                    href=f"/runs/{quote(alert.run_id, safe='')}?step={alert.step}",
                    className="what to-step",
                    title=alert.message,
                ),
                html.Span(result(alert), className="outcome"),
            ]
        )
        for alert in settled[:HISTORY_SHOWN]
    ]
    more = len(settled) - HISTORY_SHOWN
    return html.Section(
        [
            html.H3("History"),
            html.Ul(items, className="history"),
            html.P(f"and {more} earlier", className="note") if more > 0 else None,
        ],
        className="card",
    )


def _number(number: int | None) -> list[Component | str]:
    return [] if number is None else [html.B(str(number), className="number", title="its number in the panels"), " "]


def result(alert: Alert) -> str:
    """Return the result of a settled alert: the outcome of a prediction and its leads, otherwise the level."""
    if alert.state == AlertState.ENDED:
        return ENDED_SO
    if alert.outcome is None:
        return alert.level
    word = OUTCOMES.get(alert.outcome.result, alert.outcome.result)
    lead, seen = alert.outcome.lead, alert.outcome.first_seen_lead
    if alert.outcome.result == "false" or (lead is None and seen is None):
        return word
    if lead is None or lead <= 0:
        return f"{word}, without a warning"
    return f"{word}, lead {count(lead)}" + ("" if seen in (None, lead) else f", first seen {count(seen)} before")


def _result_or_state(alert: Alert) -> str:
    return result(alert) if alert.outcome is not None or alert.state == AlertState.ENDED else alert.state


def level_tone(level: str) -> str:
    """Return the stylesheet's class for an alert level."""
    return "danger" if LEVEL_RANK.get(level, 0) >= LEVEL_RANK[AlertLevel.WARNING] else "warn"


def tone(alert: Alert) -> str:
    """Return the stylesheet's class for an alert: that of its level, but calm for a prediction that did not come."""
    if alert.outcome is not None and alert.outcome.result == "false":
        return "calm"
    return level_tone(alert.level)


def alert_row(alert: Alert, run_name: str, now: float) -> Component:
    """Return one row of the page of all alerts, with a link to the run, and buttons if the alert is open."""
    opened = unix_time(alert.opened_at)
    cells: list[Any] = [
        html.Span([html.I(className=f"level {tone(alert)}"), alert.level], className="alert-level"),
        html.Span(
            [html.B(alert.title or kind_words(alert)), html.Span(symbols(alert.message), className="muted")],
            className="alert-what",
        ),
        html.Span(run_name, className="alert-run", title=run_name),
        html.Span(_result_or_state(alert), className="alert-result"),
        html.Span("" if opened is None else f"{duration(now - opened)} ago", className="muted"),
    ]
    at = "" if alert.is_open else f"?step={alert.step}"  # an open alert is about the newest steps
    link = dcc.Link(cells, href=f"/runs/{quote(alert.run_id, safe='')}{at}", className="alert-link")
    return html.Div([link, buttons(alert, now)], className="alert-row")
