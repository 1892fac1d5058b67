"""Rows of the table of runs: the texts and tones of each run. Pure; fleet.js sorts, filters and draws the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from client_sdk.answers import Alert, LastAlert, Outcome, RunSummary
from client_sdk.vocabulary import AlertLevel, AlertState, RunState, Stage
from dashboard.figures.sparkline import sparkline
from dashboard.numbers import compact, duration, rate, ratio, steps, unix_time

LAYER_CHARS: Final = 22
"""Number of characters of a layer's name in the table."""


def row(
    run: RunSummary,
    now: float,
    alerts: Mapping[str, Alert] = MappingProxyType({}),
    *,
    title: str = "",
    leading: str = "",
) -> dict[str, Any]:
    """Return one run as fleet.js draws it, with all texts formatted and every tone a class of the stylesheet.

    ``alerts``: alerts keyed by id, from which the outcome of the last alert is read. ``title``: name by which the run
    can be told apart from the others; "" for its own. ``leading``: name of the layer that leads its open alert.
    """
    word, tone = state_words(run, now)
    spike, spike_tone = spike_in(run)
    loss, loss_tone = loss_words(run)
    pace = rate(run.step_rate) if run.state == RunState.RUNNING else ""
    last = alerts.get(run.last_alert.id) if run.last_alert is not None else None
    shown, alert_tone = alert_words(run.last_alert, is_over=run.state in (RunState.FINISHED, RunState.CRASHED))
    if last is not None and last.outcome is not None:
        shown = outcome_words(last, last.outcome)
    measured = run.stability_ratio if run.stability_ratio is not None and math.isfinite(run.stability_ratio) else None
    return {
        "id": run.id,
        "href": f"/runs/{quote(run.id, safe='')}",
        "name": title or run.title,
        "project": run.project,
        "sub": " · ".join(
            part for part in (run.project, steps(run.last_step), f"{pace}/s" if pace else "", age(run, now)) if part
        ),
        "stage": run.stage or "",
        "stageWord": run.stage_words or "–",
        "stageReason": run.reason_words,
        "ratio": measured,
        "ratioWord": ratio(run.stability_ratio),
        "spikeIn": spike,
        "spikeTime": spike_time(run) if spike.endswith("steps") else "",
        "spikeTone": spike_tone,
        "spark": sparkline(run.sparkline),
        "loss": loss,
        "lossTone": loss_tone,
        "alert": shown,
        "alertTone": alert_tone,
        "state": word,
        "stateTone": tone,
        "layer": tail(leading, LAYER_CHARS) or "–",
        "layerFull": leading,
    }


def tail(name: str, width: int) -> str:
    """Return the end of a layer's name, cut at a dot where it is too long.

    >>> tail("transformer.h.3.mlp.c_proj.weight", 22), tail("0.weight", 22)
    ('…h.3.mlp.c_proj.weight', '0.weight')
    """
    if len(name) <= width:
        return name
    before, end = name[: -(width - 1)], name[-(width - 1) :]
    return "…" + (end if before.endswith(".") or "." not in end[:-1] else end.partition(".")[2])


def age(run: RunSummary, now: float) -> str:
    """Return how long ago a run began, in words that change once a minute at most; "" if it is not known."""
    began = unix_time(run.created_at)
    if not began:
        return ""
    seconds = max(now - began, 0.0)
    return "new" if seconds < 60 else f"{duration(seconds)} old"


def state_words(run: RunSummary, now: float) -> tuple[str, str]:
    """Return the state of a run in words and its tone."""
    if run.state == RunState.RUNNING:
        return "live", "ok"
    if run.state == RunState.STALE:
        seen = unix_time(run.last_seen_at)
        return ("stale" if seen is None else f"stale {duration(max(now - seen, 0.0))}"), "warn"
    words = ": ".join(part for part in (run.state, run.ended_words) if part)
    return words, "danger" if run.state == RunState.CRASHED or run.ended_words else "muted"


def loss_words(run: RunSummary) -> tuple[str, str]:
    """Return the loss in words and its tone. A loss that is NaN or infinite has no number in the summary."""
    if run.stage == Stage.NONFINITE and run.loss is None:
        return "NaN", "danger"
    return compact(run.loss), "danger" if run.loss is not None and not math.isfinite(run.loss) else ""


def spike_in(run: RunSummary) -> tuple[str, str]:
    """Return the number of steps until the expected spike in words, and its tone.

    The tone of a dash also says why it is there: the run has ended, is not judged, or no spike is predicted.
    """
    if run.state in (RunState.FINISHED, RunState.CRASHED):
        return "–", "muted ended"
    if run.stage == Stage.SPIKING:
        return "now", "danger"
    if run.predicted_step is None or run.last_step is None:
        return "–", "muted not-judged" if run.stage in (None, Stage.NOT_JUDGED) else "muted none"
    left = run.predicted_step.best - run.last_step
    if left <= 0:
        return "now", "danger"
    if run.last_alert is not None and run.last_alert.level == AlertLevel.WATCH:
        return f"~{left:,} steps", "muted"
    return steps(left), "danger"


def spike_time(run: RunSummary) -> str:
    """Return the time until the expected spike at the run's rate, "" where it is not known."""
    if run.predicted_step is None or run.last_step is None or run.state != RunState.RUNNING:
        return ""
    left = run.predicted_step.best - run.last_step
    pace = run.step_rate
    if left <= 0 or pace is None or not math.isfinite(pace) or pace <= 0:
        return ""
    return f"about {duration(left / pace)}"


def alert_words(alert: LastAlert | None, *, is_over: bool = False) -> tuple[str, str]:
    """Return the last alert in a few words, and its tone.

    The tone is urgent if the level is above watch, while the alert is open and the run continues, and for an alert that
    the run ended with.
    """
    if alert is None:
        return "–", "muted"
    lasts = alert.state == AlertState.ENDED or (alert.state != AlertState.RESOLVED and not is_over)
    urgent = lasts and alert.level != AlertLevel.WATCH
    return alert.title or alert.kind.replace("-", " "), "danger" if urgent else "muted"


def outcome_words(alert: Alert, outcome: Outcome) -> str:
    """Return a settled prediction in words: the step that the first warning named, then that of the spike."""
    forecast = alert.judged_forecast or alert.predicted_step
    predicted = "" if forecast is None else f"predicted {forecast.best:,}"
    if outcome.step is None:
        return ", ".join(part for part in (predicted, "did not come") if part)
    return f"{outcome.result}: {predicted}, came {outcome.step:,}"


def risk(run: RunSummary) -> float:
    """Return the sort key "risk": highest for spiking runs, then predicted spikes, then runs near the limit.

    Runs that have ended come last.
    """
    closeness = run.stability_ratio or 0.0
    closeness = min(max(closeness, 0.0), 9.0) if math.isfinite(closeness) else 9.0
    if run.state in (RunState.FINISHED, RunState.CRASHED):
        return closeness / 100 + (0.5 if run.state == RunState.CRASHED else 0.25 if run.ended_words else 0.0)
    weight = 10.0 if run.state == RunState.RUNNING else 5.0
    if run.stage in (Stage.SPIKING, Stage.NONFINITE):
        return weight + 50.0 + closeness
    if run.predicted_step is not None and run.last_step is not None:
        left = max(run.predicted_step.best - run.last_step, 0)
        return weight + 30.0 + 10.0 / (1.0 + left / 50.0)
    return weight + closeness
