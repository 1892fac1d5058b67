"""The tables that ``python -m campaigns.real_logs`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import median

from campaigns.real_logs.goals import EXCLUDED, Goal
from campaigns.real_logs.judge import EventScore, KindScore
from campaigns.real_logs.labels import RISES


def tables(kinds: Iterable[KindScore]) -> Iterator[str]:
    """Yield the lines of the tables."""
    scores = list(kinds)
    yield "alerts: watches and messages (warning or above)"
    yield (
        f"{'kind':16} {'logs':>4} {'records':>8} {'steps':>9} {'forecasts':>9} {'watch':>6} {'mess.':>6} "
        f"{'per 1,000 steps':>16} {'per 1,000 records':>18}  messages by kind"
    )
    for score in scores:
        steps, records = max(1, score.steps), max(1, score.records)
        by_kind = ", ".join(f"{name} {count}" for name, count in score.messages_by_kind.most_common())
        yield (
            f"{score.name:16} {score.logs:4} {score.records:8,} {score.steps:9,} "
            f"{score.forecasts:9} {score.watches:6} {score.messages:6} "
            f"{1000 * score.messages / steps:16.3f} {1000 * score.messages / records:18.3f}  "
            f"{by_kind or '–'}"
        )
    yield ""
    yield "events against labels: an event is found if a message belongs to it; a step error is in records"
    yield (
        f"{'kind':16} {'event':22} {'labelled':>8} {'found':>6} {'at first':>8} {'missed':>6} "
        f"{'|error| median, max':>20} {'delay':>6}  causes"
    )
    for score in scores:
        for name, events in _groups(score):
            yield _row(score.name, name, events)
        if score.labelled:
            yield f"{score.name:16} {'false messages':22} {len(score.false):8}   (of {score.labelled} labelled logs)"
    compared = [score for score in scores if score.coincidences.pairs or score.coincidences.recurring]
    if compared:
        yield ""
        yield "outliers at the same step in other runs, as if the logs of every step were runs of one project"
        for score in compared:
            found = score.coincidences
            yield (
                f"{score.name:16} {found.recurring} outliers recur in 3 logs of the same data or more, "
                f"{found.named} of them named ({found.share:.1%}); "
                f"{found.pairs:,} other runs named with {found.events:,} events, {len(found.false)} of other data"
            )
    graded = [score for score in scores if score.gradient_records]
    if graded:
        yield ""
        yield "gradient alarms (kind gradient-explosion), in logs with gradient norms"
        for score in graded:
            leads = sorted(event.gradient_lead for event in score.events if event.gradient_lead is not None)
            outside = len(score.false_gradient)
            yield (
                f"{score.name:16} leads in records {_short(leads)}; outside events {outside}: "
                f"{1000 * outside / max(1, score.gradient_steps):.3f} per 1,000 steps, "
                f"{1000 * outside / max(1, score.gradient_records):.3f} per 1,000 records"
            )


def goal_lines(goals: Iterable[tuple[str, Goal]]) -> Iterator[str]:
    """Yield a line for each goal with its outcome."""
    yield "goals"
    for kind, goal in goals:
        yield f"{kind:16} {'pass' if goal.is_met else 'MISS'}  {goal.text}: {goal.measured}"


def details(kinds: Iterable[KindScore]) -> Iterator[str]:
    """Yield a line for each rise that was not found at its first record, each restart and each false message."""
    for score in kinds:
        for event in score.events:
            label = event.event
            if (event.is_rise and not event.is_found_at_first) or label.kind == "restart":
                said = "; ".join(
                    f"{alert.kind} {alert.level} names {alert.named_step}, opened at {alert.opened_step}, {alert.cause}"
                    for alert in event.alerts
                )
                yield f"{label.kind:10} {label.first_step:>7} {event.log}: {said or 'nothing said'} [{label.note}]"
        for pair in score.coincidences.false:
            yield f"other data {pair}"
        for what, false in (("false", score.false), ("gradient", score.false_gradient)):
            for log, alert in false:
                yield f"{what:10} {alert.named_step:>7} {log}: {alert.kind} {alert.level}, {alert.cause}"


def _groups(score: KindScore) -> Iterator[tuple[str, list[EventScore]]]:
    named: dict[str, list[EventScore]] = {}
    for event in score.events:
        name = event.event.kind + (" (ImageNet)" if EXCLUDED in event.log else "")
        named.setdefault(name, []).append(event)
    yield from sorted(named.items())


def _row(kind: str, name: str, events: list[EventScore]) -> str:
    found = [event for event in events if event.is_found]
    timed = [event for event in found if event.event.kind != "unclear"]
    errors = sorted(abs(event.error) for event in timed if event.error is not None)
    delays = [event.delay for event in timed if event.delay is not None]
    causes = Counter(event.cause for event in events if event.alerts)
    is_rise = name.split(maxsplit=1)[0] in RISES
    return (
        f"{kind:16} {name:22} {len(events):8} {len(found):6} "
        f"{sum(event.is_found_at_first for event in events) if is_rise else '':>8} "
        f"{len(events) - len(found) if is_rise else '':>6} "
        f"{f'{median(errors):g}, {errors[-1]}' if errors else '–':>20} {f'{median(delays):g}' if delays else '–':>6}  "
        + (", ".join(f"{cause} {count}" for cause, count in causes.most_common()) or "–")
    )


def _short(leads: list[int]) -> str:
    if not leads:
        return "none"
    early = sum(lead >= 1 for lead in leads)
    return f"median {median(leads):g} ({early} of {len(leads)} before the loss)"
