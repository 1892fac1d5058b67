"""Answers in the words of agents: plain dictionaries without nulls, built from the values of the API. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from client_sdk import answers
from client_sdk.run_settings import settings_of
from client_sdk.vocabulary import EVIDENCE, LEVEL_RANK, AlertKind, RunState

Facts = dict[str, Any]
NEAR_LIMIT = 0.9
"""Stability ratio above which a run is at risk although it has no alert."""


def known(**facts: Any) -> Facts:
    """Return those facts that are known: neither None nor empty. A number that is not finite becomes text.

    >>> known(step=3, loss=float("nan"), layers=[], note=None)
    {'step': 3, 'loss': 'nan'}
    """
    found = {name: _plain(value) for name, value in facts.items()}
    return {name: value for name, value in found.items() if value is not None and value not in ("", [], {})}


def when(unix: float | None) -> str | None:
    """Return a Unix time as text in UTC, None for none.

    >>> when(0.0)
    '1970-01-01T00:00:00Z'
    """
    if unix is None or not math.isfinite(unix):
        return None
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def of_run(run: answers.RunSummary, url: str) -> Facts:
    """Return what a list of runs says about one."""
    return known(
        run_id=run.id,
        name=run.title,
        project=run.project,
        state=run.state,
        last_step=run.last_step,
        loss=run.loss,
        learning_rate=run.lr,
        stage=run.stage,
        stability_ratio=run.stability_ratio,
        open_alerts=run.open_alerts or None,
        predicted_spike=of_forecast(run.predicted_step),
        last_alert=None if run.last_alert is None else run.last_alert.title,
        ended_with=None if run.ended_with is None else run.ended_with.title,
        created_at=when(run.created_at),
        tags=list(run.tags),
        archived=run.archived or None,
        url=f"{url}/runs/{run.id}",
    )


def of_forecast(forecast: answers.PredictedStep | None) -> Facts | None:
    """Return a forecast as the steps between which the spike is expected."""
    if forecast is None:
        return None
    return {"earliest_step": forecast.low, "likely_step": forecast.best, "latest_step": forecast.high}


def of_alert(alert: answers.Alert, url: str) -> Facts:
    """Return an alert in short."""
    return known(
        alert_id=alert.id,
        run_id=alert.run_id,
        kind=alert.kind,
        level=alert.level,
        state=alert.state,
        step=alert.step,
        title=alert.title,
        message=alert.message,
        cause=None if alert.cause == "unknown" else alert.cause,
        predicted_spike=of_forecast(alert.predicted_step),
        opened_at=when(alert.opened_at),
        closed_at=when(alert.closed_at),
        url=f"{url}/alerts/{alert.id}",
    )


def evidence_of(alert: answers.Alert) -> list[Facts]:
    """Return the measurements behind an alert, each with what it means."""
    return [
        known(key=key, meaning=EVIDENCE[key].label if key in EVIDENCE else key, value=value)
        for key, value in alert.evidence.items()
        if value is not None
    ]


def of_event(event: answers.Event) -> Facts:
    """Return an event without the keys that it does not have."""
    fields = msgspec.to_builtins(event)
    fields.pop("coincidence", None)
    return known(**fields)


def risk_of(run: answers.RunSummary, alerts: Sequence[answers.Alert]) -> Facts | None:
    """Return why a run is at risk, with the worst reason first; None for a run that is not.

    ``alerts`` are the open alerts of the run.
    """
    reasons = [f"{alert.level}: {alert.title}" for alert in worst_first(alerts)]
    ratio = run.stability_ratio
    if ratio is not None and ratio >= NEAR_LIMIT and run.state == RunState.RUNNING:
        reasons.append(f"the curvature is at {ratio:.2f} of the limit 2/η, beyond which the loss grows")
    if not reasons:
        return None
    worst = max((LEVEL_RANK[alert.level] for alert in alerts), default=-1)
    level = next((level for level, rank in LEVEL_RANK.items() if rank == worst), "watch")
    return {"level": str(level), "reasons": reasons}


def worst_first(alerts: Sequence[answers.Alert]) -> list[answers.Alert]:
    """Return alerts with the most severe first."""
    return sorted(alerts, key=lambda alert: LEVEL_RANK[alert.level], reverse=True)


def urgency(run: answers.RunSummary, alerts: Sequence[answers.Alert]) -> tuple[float, float]:
    """Return the sort key of a run at risk: the worst level first, then the nearest predicted spike."""
    worst = max((LEVEL_RANK[alert.level] for alert in alerts), default=-1)
    predicted = [a.predicted_step.best for a in alerts if a.kind == AlertKind.SPIKE_PREDICTED and a.predicted_step]
    left = min((step - (run.last_step or 0) for step in predicted), default=math.inf)
    return -float(worst), float(left)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the settings in which two runs differ.

    >>> differences({"lr": 0.1, "model.depth": 2}, {"lr": 0.2, "model.depth": 2, "seed": 1})
    {'lr': [0.1, 0.2], 'seed': [None, 1]}
    """
    names = {**first, **second}
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def of_settings(run: answers.RunSummary) -> Facts:
    """Return the settings of a run, with numbers that are not finite as text."""
    return {name: _plain(value) for name, value in settings_of(run).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
