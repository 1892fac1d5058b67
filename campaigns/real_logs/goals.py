"""Goals of each kind of log, from the issue that asked for honest alerts on real logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from campaigns.real_logs.judge import EventScore, KindScore

MAX_MESSAGES_PER_1000: Final = 0.05
"""Messages per 1,000 steps on logs of every step in which nothing happened."""
MIN_FOUND: Final = 0.95
"""Share of the rises that must be found at their first record."""
MAX_GRADIENT_ALARMS_PER_1000: Final = 0.05
"""Gradient alarms outside events per 1,000 steps."""
SAME_CURVE: Final = "own/every_"
"""Beginning of the names of our own logs that hold one curve at different logging intervals."""
EXCLUDED: Final = "imagenet"
"""Workload whose many short spikes the goals leave out."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One goal with its outcome."""

    text: str
    measured: str
    is_met: bool


def goals(score: KindScore) -> list[Goal]:
    """Return the goals of a kind of log with their outcomes; none for a kind without goals."""
    found = _GOALS.get(score.name)
    return [] if found is None else found(score)


def _nothing_happened(score: KindScore) -> list[Goal]:
    return [
        _at_most("messages per 1,000 steps", _per_1000(score.messages, score.steps), MAX_MESSAGES_PER_1000),
        _at_most("forecasts", score.forecasts, 0),
        *_named_runs(score),
    ]


def _named_runs(score: KindScore) -> list[Goal]:
    """Return the goals for outliers that several runs of the same data show."""
    found = score.coincidences
    named = Goal(
        text=f"at least {MIN_FOUND:.0%} of the recurring outliers named",
        measured=f"{found.named} of {found.recurring} ({found.share:.1%})",
        is_met=found.share >= MIN_FOUND,
    )
    return [named, _at_most("runs of other data named", len(found.false), 0)]


def _sustained_rises(score: KindScore) -> list[Goal]:
    rises = [event for event in score.rises if EXCLUDED not in event.log]
    return [_found(rises, MIN_FOUND, "rises outside ImageNet"), _no_bad_batch(score), _few_gradient_alarms(score)]


def _instabilities(score: KindScore) -> list[Goal]:
    return [_found(score.rises, 1.0, "instabilities"), _gradient_first(score)]


def _own(score: KindScore) -> list[Goal]:
    events = [event for event in score.events if not event.event.gap]
    gaps = {event.event.gap for event in score.events if event.event.gap}
    drifts = [event for event in events if event.event.kind == "drift"]
    return [
        _found([event for event in events if event.is_rise], 1.0, "rises"),
        _all("drifts followed by a message", [event.is_found for event in drifts]),
        _at_most("messages outside events", len(score.false), 0),
        _at_most("forecasts", score.forecasts, 0),
        _same_at_every_interval(score),
        _no_bad_batch(score),
        _gradient_first(score),
        _few_gradient_alarms(score),
        *(Goal(text=f"left out for now: {gap}", measured="–", is_met=True) for gap in sorted(gaps)),
    ]


def _same_at_every_interval(score: KindScore) -> Goal:
    """Return the goal that one curve gets one verdict, whether each step, each 10th or each 100th is logged."""
    logs: dict[str, list[tuple[object, ...]]] = {}
    for event in score.events:
        if event.log.startswith(SAME_CURVE) and not event.event.gap:
            said = sorted((alert.kind, alert.level, alert.cause) for alert in event.alerts)
            logs.setdefault(event.log, []).append((event.error, event.delay, *said))
    verdicts = list(logs.values())
    return _all("logs of one curve with the same verdict", [verdict == verdicts[0] for verdict in verdicts])


def _gradient_first(score: KindScore) -> Goal:
    """Return the goal for rises before which the gradient norm is anomalous."""
    led = [event for event in score.events if event.event.gradient_step is not None and not event.event.gap]
    in_time = [
        event.gradient_delay is not None
        and event.gradient_lead is not None
        and event.gradient_delay <= 1
        and event.gradient_lead >= 1
        for event in led
    ]
    return _all("gradient alarms by the second anomalous record, and before the loss", in_time)


def _all(text: str, outcomes: list[bool]) -> Goal:
    return Goal(text=text, measured=f"{sum(outcomes)} of {len(outcomes)}", is_met=all(outcomes))


def _found(rises: list[EventScore], share: float, what: str) -> Goal:
    hits = sum(event.is_found_at_first for event in rises)
    return Goal(
        text=f"at least {share:.0%} of the {what} found at their first record",
        measured=f"{hits} of {len(rises)}" + (f" ({hits / len(rises):.1%})" if rises else ""),
        is_met=hits >= share * len(rises),
    )


def _no_bad_batch(score: KindScore) -> Goal:
    restarts = [event for event in score.restarts if not event.event.gap]
    return _at_most("restarts called a bad batch", sum(event.is_called_bad_batch for event in restarts), 0)


def _few_gradient_alarms(score: KindScore) -> Goal:
    return _at_most(
        "gradient alarms outside events per 1,000 steps",
        _per_1000(len(score.false_gradient), score.gradient_steps),
        MAX_GRADIENT_ALARMS_PER_1000,
    )


def _at_most(text: str, measured: float, limit: float) -> Goal:
    return Goal(text=f"{text}: at most {limit:g}", measured=f"{measured:.3g}", is_met=measured <= limit)


def _per_1000(count: int, of: int) -> float:
    return 1000 * count / max(1, of)


_GOALS: Final[Mapping[str, Callable[[KindScore], list[Goal]]]] = {
    "modded-nanogpt": _nothing_happened,
    "algoperf": _sustained_rises,
    "bloom": _instabilities,
    "own": _own,
}
