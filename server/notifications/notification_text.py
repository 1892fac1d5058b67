"""Text of notifications, independent of the channel. Pure.

Names of projects, runs, layers and rules come from the people who run trainings and stand here unchanged. The renderer
of each channel escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from client_sdk.protocol import Alert
from client_sdk.vocabulary import EVIDENCE, LEVEL_RANK
from server.models import AlertKind, AlertLevel, AlertState, Cause
from server.notification import CLOSING, Change, NotifiedIncident, OutboxRow

DIGEST_NAMED: Final = 10
"""Number of runs that a digest lists by name."""
LAYERS_NAMED: Final = 3
NAME_CHARS: Final = 80
WAITED: Final = "They waited and are gathered here, because a run sends only a few messages an hour."
COMMON_CAUSE: Final = (
    "So many at once often share a cause outside the trainings: storage, network, a node, a change of data."
)


@dataclass(frozen=True, kw_only=True)
class Links:
    """Pages of the dashboard that a notification links to."""

    run: str
    acknowledge: str
    silence: str


@dataclass(frozen=True, kw_only=True)
class Notification:
    """Content of one notification."""

    id: str
    """Id that stays the same in every delivery attempt."""
    headline: str
    why: str = ""
    """Explanation in a sentence with numbers."""
    facts: tuple[tuple[str, str], ...] = ()
    """Pairs of label and value, the most important first."""
    advice: tuple[str, ...] = ()
    level: str = AlertLevel.WATCH.value
    change: Change | None = None
    """Change of the alert; None for a digest or a test notification."""
    alert: Alert | None = None
    run_name: str = ""
    project: str = ""
    incident_id: str = ""
    links: Links | None = None
    members: tuple[tuple[str, str], ...] = ()
    """Pairs of run name and alert title that a digest lists."""
    about: str = ""
    """Title of the incident, if the channel has already been notified of it."""
    is_repeat: bool = False
    """Whether an earlier delivery attempt may have arrived."""
    created_at: float = 0.0


def alert_notification(row: OutboxRow, incident: NotifiedIncident | None, public_url: str) -> Notification:
    """Return the notification of a change. ``incident`` is None if the channel has not been notified of it before."""
    alert = row.alert
    change = row.change
    if incident is None and change is Change.ESCALATED:
        change = Change.OPENED  # the first notification that this channel receives of the incident
    is_past = _is_past(row, change)
    return Notification(
        id=row.message_id,
        headline=_headline(row, change),
        why=alert.message,
        facts=_closing_facts(row) if change in CLOSING else _facts(row),
        advice=alert.advice if change in (Change.OPENED, Change.ESCALATED) and not is_past else (),
        level=alert.level,
        change=change,
        alert=alert,
        run_name=row.run_name,
        project=row.project,
        incident_id=row.incident_id,
        links=_links(row, public_url),
        about=f"{alert.title}, opened at step {alert.step:,}" if incident is not None else "",
        is_repeat=row.delivery_attempts > 0,
        created_at=row.created_at,
    )


def _is_past(row: OutboxRow, change: Change) -> bool:
    """Return whether an event came and went before its first notification."""
    return change is Change.OPENED and not row.still_open and row.alert.state != AlertState.ENDED


def digest_notification(rows: Sequence[OutboxRow], window: float, public_url: str) -> Notification:
    """Return one notification of several alerts, of one run or many. ``window`` is the digest window in seconds."""
    worst = max((row.alert.level for row in rows), key=LEVEL_RANK.__getitem__)
    runs: dict[str, OutboxRow] = {}
    for row in rows:
        runs.setdefault(row.run_id, row)
    kinds = sorted({row.alert.kind.replace("-", " ") for row in rows})
    projects = sorted({row.project for row in rows})
    first = rows[0]
    is_one_run = len(runs) == 1
    listed = rows if is_one_run else list(runs.values())
    lines = [(f"step {row.alert.step:,}" if is_one_run else row.run_name, _listed(row)) for row in listed]
    more = len(lines) - DIGEST_NAMED
    projects_named = ", ".join(projects[:LAYERS_NAMED]) + (" …" if len(projects) > LAYERS_NAMED else "")
    return Notification(
        id=first.message_id,
        headline=(
            f"{len(rows):,} alerts within {_span(rows, window)}, run {short(first.run_name)}"
            if is_one_run
            else f"{len(runs):,} runs raised alerts within {_span(rows, window)}"
        ),
        why=WAITED if is_one_run else COMMON_CAUSE,
        facts=(
            ("Kinds", ", ".join(kinds)),
            ("Projects", projects_named),
            ("Worst level", worst),
        ),
        level=worst,
        members=tuple(lines[:DIGEST_NAMED]) + ((("", f"and {more:,} more"),) if more > 0 else ()),
        links=_links(rows[-1], public_url)
        if is_one_run
        else Links(run=f"{public_url}/alerts", acknowledge="", silence=""),
        is_repeat=any(row.delivery_attempts > 0 for row in rows),
        created_at=first.created_at,
    )


def channel_test_notification(message_id: str, channel: str, public_url: str, now: float) -> Notification:
    """Return a test message, which shows that a channel works."""
    return Notification(
        id=message_id,
        headline="Spikewatch can reach this channel",
        why="This is a test that an administrator asked for. Alerts of training runs will look like it, with numbers.",
        facts=(("Channel", channel), ("Sent", _utc(now))),
        links=Links(run=public_url, acknowledge="", silence=""),
        created_at=now,
    )


def plain_text(notification: Notification) -> str:
    """Return the whole notification as lines of text."""
    lines = [notification.why] if notification.why else []
    lines += [f"{label}: {value}" for label, value in notification.facts]
    lines += [f"- {name}: {what}" if name else f"- {what}" for name, what in notification.members]
    if notification.advice:
        lines += ["", "What to try (change one thing):"]
        lines += [f"{number}. {item}" for number, item in enumerate(notification.advice, 1)]
    if notification.about:
        lines += ["", f"About: {notification.about}"]
    if notification.links is not None:
        lines += ["", notification.links.run]
    lines.append(f"Message {notification.id}" + (" (may be a repetition)" if notification.is_repeat else ""))
    return "\n".join(lines)


def _headline(row: OutboxRow, change: Change) -> str:
    alert = row.alert
    where = f", run {short(row.run_name)}"
    outcome = alert.outcome
    if change is Change.CONFIRMED and outcome is not None:
        how = {"early": "Confirmed, earlier than predicted", "late": "Confirmed, later than predicted"}
        came = how.get(outcome.result, "Confirmed")
        lead = (
            f": lead {outcome.lead:,} steps" if outcome.lead is not None and outcome.lead > 0 else ", without a warning"
        )
        return f"{came}: it came at step {outcome.step or alert.updated_step:,}{lead}{where}"
    if change is Change.FALSE_ALARM:
        return f"False alarm: it did not come by step {alert.updated_step:,}{where}"
    if change is Change.ENDED:
        return f"The run ended so, at step {alert.updated_step:,}: {alert.title}{where}"
    if change is Change.RESOLVED:
        return f"Resolved at step {alert.updated_step:,}: {alert.title}{where}"
    if _is_past(row, change):
        return f"Came and went: {alert.title}, over by step {alert.updated_step:,}{where}"
    if change is Change.OPENED and alert.state == AlertState.ENDED:
        return f"{_what(alert)}, and the run ended so{where}"
    what = _what(alert)
    if change is Change.ESCALATED:
        return f"Now {alert.level}: {what[:1].lower()}{what[1:]}{where}"
    return f"{what}{where}"


def _listed(row: OutboxRow) -> str:
    """Return the line of an alert in a digest."""
    if row.alert.state == AlertState.ENDED:
        return f"{row.alert.title} (the run ended so)"
    return row.alert.title if row.still_open else f"{row.alert.title} (over)"


def _what(alert: Alert) -> str:
    """Return, for example, "Spike predicted in ~85 steps (step 712, 698–731)"; for other kinds the alert's title."""
    date = alert.predicted_step
    if alert.kind != AlertKind.SPIKE_PREDICTED or date is None:
        return alert.title or alert.kind.replace("-", " ")
    word = "possible" if alert.level == AlertLevel.WATCH else "predicted"
    ahead = max(0, date.best - alert.updated_step)
    band = f"step {date.best:,}" + ("" if date.low == date.high else f", {date.low:,}–{date.high:,}")
    return f"Spike {word} in ~{ahead:,} steps ({band})"


def _facts(row: OutboxRow) -> tuple[tuple[str, str], ...]:
    alert = row.alert
    facts = [("Run", row.run_name), ("Project", row.project)]
    if row.stage and alert.state in (AlertState.OPEN, AlertState.ENDED):
        facts.append(("Stage", row.stage.replace("-", " ")))
    ratio = _number(alert.evidence, "stability_ratio")
    if ratio is not None:
        lambda_max, limit = _number(alert.evidence, "lambda_max"), _number(alert.evidence, "stability_limit")
        parts = "" if lambda_max is None or limit is None else f" ({lambda_max:.4g} of {limit:.4g})"
        facts.append((_label("stability_ratio"), f"{ratio:.2f}{parts}"))
    if alert.layers:
        facts.append(("Leading layers", _layers(alert)))
    if alert.cause != Cause.UNKNOWN:
        facts.append(("Likely cause", alert.cause.replace("-", " ")))
    series = alert.evidence.get("series")
    if isinstance(series, str):
        facts.append((_label("series"), series))
    for key, form in _EVIDENCE.items():
        value = _number(alert.evidence, key)
        if value is not None and len(facts) < 9:
            facts.append((_label(key), form.format(value).replace("-", "−")))
    facts.append(("Level", alert.level))
    return tuple(facts)


def _closing_facts(row: OutboxRow) -> tuple[tuple[str, str], ...]:
    """Return the few facts about the end of an incident; its measurements were sent before."""
    facts = [("Run", row.run_name), ("Project", row.project)]
    alert = row.alert
    if alert.outcome is None:
        return tuple(facts)
    date = alert.first_predicted_step
    for forecast in alert.turns:
        band = f"{forecast.best:,} ({forecast.low:,}–{forecast.high:,})"
        facts.append((f"Forecast at step {forecast.step:,}", f"step {band}, {forecast.level}"))
    if date is not None and not alert.forecasts:
        facts.append(("First predicted", f"step {date.best:,} ({date.low:,}–{date.high:,}), at step {alert.step:,}"))
    if alert.outcome.first_seen_lead is not None and alert.outcome.first_seen_lead != alert.outcome.lead:
        facts.append(("First signs", f"step {alert.step:,}, {alert.outcome.first_seen_lead:,} steps before the spike"))
    return tuple(facts)


_EVIDENCE: Final = {
    "expected_rise": "{:,.2g}",
    "decoupling": "{:.2g}",
    "decoupled_steps": "{:,.0f} steps",
    "gradient_growth_per_step": "{:+.1%} a step",
    "lambda_grad_ratio": "{:.2f}",
    "loss": "{:.3g}",
    "loss_baseline": "{:.3g}",
    "grad_norm_ratio": "{:.1f}×",
    "learning_rate_before": "{:.3g}",
    "learning_rate_after": "{:.3g}",
    "value": "{:.4g}",
    "limit": "{:.4g}",
    "silent_minutes": "{:,.1f}",
    "eps_fraction": "{:.0%}",
}
"""Format of each kind of evidence that a notification shows, the most important first."""


def _label(key: str) -> str:
    """Return the label of an evidence key in sentence case; symbols keep theirs."""
    label = EVIDENCE[key].label
    return label[0].upper() + label[1:] if label[:2].isalpha() else label


def _layers(alert: Alert) -> str:
    shares = [*alert.layer_shares, *([0.0] * len(alert.layers))]
    named = [
        short(layer) + (f" {share:.0%}" if share > 0 else "")
        for layer, share in zip(alert.layers[:LAYERS_NAMED], shares, strict=False)
    ]
    return ", ".join(named)


def _links(row: OutboxRow, public_url: str) -> Links:
    run = f"{public_url}/runs/{quote(row.run_id, safe='')}"
    alert = quote(row.alert.id, safe="")
    return Links(
        run=f"{run}?step={row.alert.updated_step}",
        acknowledge=f"{public_url}/alerts/{alert}?do=acknowledge",
        silence=f"{public_url}/alerts/{alert}?do=silence",
    )


def _number(evidence: Mapping[str, float | int | str | None], key: str) -> float | None:
    value = evidence.get(key)
    return float(value) if isinstance(value, int | float) else None


def _span(rows: Sequence[OutboxRow], window: float) -> str:
    seconds = max(row.created_at for row in rows) - min(row.created_at for row in rows)
    return f"{max(1.0, seconds):,.0f} s" if seconds <= window else f"{seconds / 60:,.0f} min"


def _utc(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(name: str) -> str:
    """Return a name on one line, cut to `NAME_CHARS` characters."""
    line = " ".join(name.split())
    return line if len(line) <= NAME_CHARS else line[: NAME_CHARS - 1] + "…"
