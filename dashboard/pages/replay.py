"""The section of a run's page that replays the run through the present detectors. Pure but for its action.

It shows what would have been told, and when, beside what was told while the run was live. Sensitivity is the one knob.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Replay, Told
from client_sdk.vocabulary import AlertLevel, Cause, Sensitivity
from dashboard import ids
from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties, form_result
from dashboard.forms.attributes import aria
from dashboard.forms.fields import Options, button, choice, form
from dashboard.numbers import count
from dashboard.pages.alert_cards import OUTCOMES, level_tone
from dashboard.pages.symbols import symbols

FORM: Final = "replay"
SHOWN: Final = 40
"""Number of alerts of a list that are shown."""
STEPS: Final[Options] = (
    (Sensitivity.FEWER.value, "fewer alerts"),
    (Sensitivity.USUAL.value, "the usual"),
    (Sensitivity.MORE.value, "more alerts"),
)
HINT: Final = "A predicted spike is a warning from an expected rise of the loss by 100 %, 60 % or 10 %."


def section(run_id: str) -> Component:
    """Return the section with its form, before the first replay."""
    fields = [choice("sensitivity", "Sensitivity", STEPS, Sensitivity.USUAL.value, hint=HINT)]
    return html.Section(
        [
            html.Div(
                html.Div(
                    [
                        html.H2("Replay"),
                        html.Span("what the present detectors would have told, and when", className="note"),
                    ],
                    className="panel-title",
                ),
                className="panel-head",
            ),
            form(FORM, fields, [button("Replay this run", "replay-run", strong=True)], subject=run_id),
            html.Div(id=ids.REPLAY_RESULT, **aria(live="polite")),
        ],
        className="card panel replay",
        **aria(label="replay"),
    )


def result(replay: Replay) -> list[Component]:
    """Return both lists of a replay, with a sentence above them."""
    told = [html.P(_sentence(replay), className="replay-words")]
    if not replay.complete:
        told.append(
            html.P(
                f"The time limit was reached at step {count(replay.last_step)}; later steps were not read. "
                "`spikewatch evaluate RUN` has no limit.",
                className="warn",
            )
        )
    lists = [
        _list("Would have been told", replay.would, replay.would_count),
        _list("Was told", replay.told, len(replay.told)),
    ]
    return [*told, html.Div(lists, className="replay-lists")]


def _sentence(replay: Replay) -> str:
    read = f"{count(replay.records)} records up to step {count(replay.last_step)}"
    if not replay.would_count:
        return f"{read}: no alert."
    warned = sum(one.level != AlertLevel.WATCH for one in replay.would)
    alerts = "one alert" if replay.would_count == 1 else f"{count(replay.would_count)} alerts"
    same = " The same was told." if replay.would == replay.told else ""
    return f"{read}: {alerts}, {count(warned)} at level warning or above.{same}"


def _list(title: str, alerts: Sequence[Told], total: int) -> Component:
    items = [
        html.Li(
            [
                html.Span(html.I(className=f"level {level_tone(one.level)}"), className="mark", title=one.level),
                html.Span(
                    [html.B(f"step {count(one.step)}"), html.Span(f"{one.level} · {one.title}")], className="what"
                ),
                html.Span(symbols(_details(one)), className="muted"),
            ]
        )
        for one in alerts[:SHOWN]
    ]
    more = total - len(items)
    return html.Div(
        [
            html.H3(title),
            html.Ol(items, className="replay-list") if items else html.P("Nothing.", className="muted"),
            html.P(f"and {count(more)} more", className="note") if more > 0 else None,
        ]
    )


def _details(alert: Told) -> str:
    """Return the warning, the forecast, the outcome and the cause of an alert, as far as it has them."""
    parts = []
    if alert.warned_at_step is not None and alert.warned_at_step != alert.step:
        parts.append(f"warning at step {count(alert.warned_at_step)}")
    date = alert.predicted_step
    if date is not None:
        parts.append(f"forecast {count(date.low)} to {count(date.high)}")
    if alert.result is not None:
        parts.append(OUTCOMES.get(alert.result, alert.result))
    if alert.cause not in ("", Cause.UNKNOWN):
        parts.append(alert.cause.replace("-", " "))
    return " · ".join(parts)


async def replay_run(action: FormAction, context: ActionContext) -> Properties:
    """Replay the run at the chosen sensitivity and show both lists."""
    wanted = action.fields.get("sensitivity", "")
    sensitivity = Sensitivity(wanted) if wanted in tuple(Sensitivity) else Sensitivity.USUAL
    replay = await context.client.replay(action.subject, sensitivity)
    return {**form_result(action, message="Replayed."), ids.REPLAY_RESULT: {"children": result(replay)}}


ACTIONS: Final[Mapping[str, Handler]] = {"replay-run": replay_run}
"""Handlers keyed by verb."""
