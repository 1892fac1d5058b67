"""Evaluation of alert rules over one writer's stream: a sample in, the findings that hold out.

Owns when a rule begins and ends to hold, and the short history that this needs; `alerts.lifecycle` turns findings into
alerts. A pure function of the stream like the detectors: the division into batches cannot matter, the state
round-trips, and NaN and infinities change only what they are about. Memory is bounded: a few numbers for each rule, and
at most 500 values.

* Layers are reduced to one number first, so a rule costs the same whatever it watches. Values that were not measured
  (NaN) are left out.
* above, below: the value is compared to a threshold. An infinite value is above every threshold; NaN is left to the
  detector of non-finite values.
* change: the value is compared to the one `window` steps earlier (within a hundredth of long windows). For a change by
  a factor both must be positive.
* z-score: (value − median)/σ of the last `window` values, σ = interquartile range/1.349 (that of a normal distribution)
  and at least a thousandth of the median, so that a constant stays silent. Only earlier values count, and nothing is
  judged before half the window is full.
* no data: decided by the clock and not by samples; see `find_silent`.

A rule begins to hold when its condition was met at `for_steps` consecutive values, and ends when it was not met at as
many.

>>> from client_sdk.vocabulary import Condition
>>> from server.rule import Rule
>>> evaluator = RuleEvaluator()
>>> rule = Rule(id="high", name="Loss is high", scalar="loss", condition=Condition.ABOVE, value=2.0)
>>> evaluator.replace_rules((rule,), "1")
()
>>> samples = [Sample(step=i, time=i, scalars={"loss": x}) for i, x in enumerate((1.0, 3.0, 1.0))]
>>> [len(evaluator.update(sample, sample.time).findings) for sample in samples]
[0, 1, 0]
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

import msgspec

from client_sdk.vocabulary import ChangeBy, Condition, Direction
from server.detectors.rule_values import RuleValues
from server.models import AlertKind, Finding, Sample
from server.rule import Rule

SNAPSHOT_VERSION: Final = 1
POINTS: Final = 100
"""Number of values that are kept for a change; for longer windows a value every few steps."""
QUARTILES_TO_DEVIATION: Final = 1.349
"""The interquartile range of a normal distribution in units of its standard deviation."""
MIN_SPREAD: Final = 1e-3
"""Smallest standard deviation, as a share of the median."""
PATIENCE: Final = 3.0
"""Ratio to the longest usual pause below which a silence is normal."""
PAUSE_DECAY: Final = 0.9995
"""Factor per value by which the longest usual pause shrinks; a long pause counts for a few thousand values."""
MAX_VALUE: Final = 1e300
"""Largest value that changes and z-scores are computed for, because differences and ratios would overflow."""


class RuleResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one sample."""

    findings: tuple[Finding, ...]
    """Findings that hold now."""
    returned: tuple[tuple[str, float], ...] = ()
    """Ids of the rules whose data came back, with the length of the silence in seconds. Their alerts end at once."""


NOTHING: Final = RuleResult(findings=())


class RuleState(msgspec.Struct):
    """One rule with its history."""

    rule: Rule
    firing: bool = False
    """Whether the rule holds."""
    held: int = 0
    """Number of the latest consecutive values that met the condition."""
    missed: int = 0
    """Number of the latest consecutive values that did not."""
    since: int = 0
    """First step of the values counted by `held`."""
    value: float | None = None
    """Last value of the series."""
    reference: float | None = None
    """Number that the value was compared to: an earlier value, or the median."""
    deviations: float | None = None
    """Last z-score of the series."""
    layers: tuple[str, ...] = ()
    """Layers that the value came from when the rule began to hold."""
    fired_at: float | None = None
    """Time at which the rule last began to hold: of the training clock, for no data of the server's clock."""
    seen_at: float | None = None
    """Time of the last value by the server's clock."""
    pause: float = 0.0
    """Longest usual pause in seconds."""
    steps: list[int] = []
    values: list[float] = []

    @property
    def max_silence(self) -> float:
        """Seconds of silence after which a rule about no data holds."""
        return max(60.0 * self.rule.value, PATIENCE * self.pause)

    def is_rested(self, time: float) -> bool:
        """Whether the cooldown after the last alert is over. A clock that went backwards does not extend it."""
        return self.fired_at is None or not 0 <= time - self.fired_at < 60.0 * self.rule.cooldown_minutes

    def renew(self) -> None:
        """Forget the values of the previous attempt. The usual pause and the cooldown stay."""
        self.firing, self.held, self.missed, self.value = False, 0, 0, None
        self.steps, self.values = [], []


class _State(msgspec.Struct):
    version: int = SNAPSHOT_VERSION
    rules: str = ""
    """Version of the rule set (`RuleSet.version`)."""
    attempt: int = 0
    last_step: int = 0
    """Step of the last sample that was not late."""
    seen_at: float | None = None
    """Time of the last sample by the server's clock."""
    states: list[RuleState] = msgspec.field(default_factory=list, name="watches")


class RuleEvaluator:
    """The alert rules that watch one run. Not thread-safe."""

    def __init__(self) -> None:
        self._state = _State()
        self._ordered: dict[str, list[float]] = {}
        self._values = RuleValues()

    @property
    def version(self) -> str:
        """Version of the rule set that `replace_rules` received last."""
        return self._state.rules

    @property
    def statistics(self) -> frozenset[str]:
        """Names of the layer statistics that the rules watch."""
        return frozenset(entry.rule.statistic for entry in self._state.states if entry.rule.statistic is not None)

    @property
    def last_step(self) -> int:
        """Step of the last sample that was not late."""
        return self._state.last_step

    @property
    def due_at(self) -> float | None:
        """Unix time at which `find_silent` returns a finding if no data arrives; None for never."""
        due = []
        for entry in self._state.states:
            if entry.rule.condition is Condition.NO_DATA and not entry.firing and entry.seen_at is not None:
                rested = -math.inf if entry.fired_at is None else entry.fired_at + 60.0 * entry.rule.cooldown_minutes
                due.append(max(entry.seen_at + entry.max_silence, rested))
        return min(due, default=None)

    def replace_rules(self, rules: Sequence[Rule], version: str) -> tuple[str, ...]:
        """Evaluate these rules and no others from the next sample on. Unchanged rules keep their state.

        Returns the ids of the rules that held and were removed or changed; their alerts are over.
        """
        state = self._state
        before = {entry.rule.id: entry for entry in state.states}
        kept: list[RuleState] = []
        for rule in rules:
            entry = before.get(rule.id)
            if entry is not None and entry.rule == rule:
                kept.append(before.pop(rule.id))
            else:
                kept.append(RuleState(rule=rule, seen_at=state.seen_at))
        state.rules, state.states = version, kept
        self._ordered.clear()
        return tuple(entry.rule.id for entry in before.values() if entry.firing)

    def update(self, sample: Sample, at: float) -> RuleResult:
        """Add one sample, which arrived at time `at` of the server's clock. Only rules about no data use that time."""
        state = self._state
        if sample.attempt != state.attempt:
            state.attempt = sample.attempt
            for entry in state.states:
                entry.renew()
        if not sample.is_late:
            state.last_step = sample.step
        state.seen_at = at
        if not state.states:
            return NOTHING
        returned: list[tuple[str, float]] = []
        for entry in state.states:
            if entry.rule.condition is Condition.NO_DATA:
                silence = self._note_arrival(entry, sample, at)
                if silence is not None:
                    returned.append((entry.rule.id, silence))
                continue
            value = self._values.value(entry.rule, sample)
            if value is not None:
                self._judge(entry, sample, value)
        return RuleResult(findings=self.findings(), returned=tuple(returned))

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings of the rules that hold."""
        return tuple(_finding(entry, self._state) for entry in self._state.states if entry.firing)

    def find_silent(self, now: float, since: float = -math.inf) -> tuple[Finding, ...]:
        """Return the findings of the rules about no data that begin to hold at `now`.

        Silence counts from `since` on at the earliest, because data before it may have gone unnoticed.
        """
        begun = []
        for entry in self._state.states:
            if entry.rule.condition is not Condition.NO_DATA or entry.firing or entry.seen_at is None:
                continue
            if now - max(entry.seen_at, since) >= entry.max_silence and entry.is_rested(now):
                entry.firing, entry.fired_at, entry.since = True, now, self._state.last_step
                entry.value = now - entry.seen_at
                begun.append(_finding(entry, self._state))
        return tuple(begun)

    def snapshot(self) -> bytes:
        """Return the whole state. An evaluator that is restored from it continues exactly where this one is."""
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> RuleEvaluator:
        """Return the evaluator that a snapshot was taken of.

        Raises `ValueError` for a snapshot of another version and for anything else (`msgspec.DecodeError` is one).
        """
        evaluator = cls()
        state = msgspec.msgpack.decode(data, type=_State)
        if state.version != SNAPSHOT_VERSION:
            raise ValueError(f"the snapshot has version {state.version}, but this server reads {SNAPSHOT_VERSION}")
        evaluator._state = state
        return evaluator

    def _note_arrival(self, entry: RuleState, sample: Sample, at: float) -> float | None:
        """Return the length of a silence in seconds if an alert is open about it and this sample ends it."""
        if not self._values.is_logged(entry.rule, sample):
            return None
        silence = 0.0 if entry.seen_at is None else max(at - entry.seen_at, 0.0)
        entry.pause = max(silence, PAUSE_DECAY * entry.pause)
        entry.seen_at = at
        was_firing, entry.firing = entry.firing, False
        return silence if was_firing else None

    def _judge(self, entry: RuleState, sample: Sample, value: float) -> None:
        """Add one value to one rule."""
        rule = entry.rule
        match rule.condition:
            case Condition.ABOVE:
                holds = value > rule.value
            case Condition.BELOW:
                holds = value < rule.value
            case Condition.CHANGE:
                if abs(value) > MAX_VALUE:
                    return
                holds = _has_changed(entry, sample.step, value)
            case _:
                if abs(value) > MAX_VALUE:
                    return
                holds = self._is_unusual(entry, value)
        entry.value = value
        if not holds:
            entry.held = 0
            entry.missed += 1
            entry.firing = entry.firing and entry.missed < rule.for_steps
            return
        if entry.held == 0:
            entry.since = sample.step
        entry.held += 1
        entry.missed = 0
        if not entry.firing and entry.held >= rule.for_steps and entry.is_rested(sample.time):
            entry.firing, entry.fired_at = True, sample.time
            entry.layers = self._values.leaders(rule, sample)

    def _is_unusual(self, entry: RuleState, value: float) -> bool:
        rule = entry.rule
        ordered = self._ordered.get(rule.id)
        if ordered is None:
            ordered = self._ordered[rule.id] = sorted(entry.values)
        count = len(ordered)
        unusual = False
        if count >= rule.window // 2:
            centre = ordered[count // 2] if count % 2 else 0.5 * (ordered[count // 2 - 1] + ordered[count // 2])
            spread = (ordered[(3 * count) // 4] - ordered[count // 4]) / QUARTILES_TO_DEVIATION
            z = (value - centre) / max(spread, MIN_SPREAD * abs(centre), 1e-300)
            unusual = _is_beyond(rule.direction, z, rule.value)
            entry.reference, entry.deviations = centre, z
        entry.values.append(value)
        insort(ordered, value)
        if len(entry.values) > rule.window:
            del ordered[bisect_left(ordered, entry.values.pop(0))]
        return unusual


def _has_changed(entry: RuleState, step: int, value: float) -> bool:
    rule, steps, values = entry.rule, entry.steps, entry.values
    while len(steps) > 1 and steps[1] <= step - rule.window:
        del steps[0], values[0]
    changed = False
    if steps and steps[0] <= step - rule.window:
        before = entry.reference = values[0]
        if rule.change_by is ChangeBy.AMOUNT:
            changed = _is_beyond(rule.direction, value - before, rule.value)
        elif value > 0 and before > 0:
            changed = _is_beyond(rule.direction, math.log(value / before), math.log(rule.value))
    if not steps or step - steps[-1] >= max(1, rule.window // POINTS):
        steps.append(step)
        values.append(value)
    return changed


def _is_beyond(direction: Direction, amount: float, limit: float) -> bool:
    return (direction is not Direction.DOWN and amount >= limit) or (direction is not Direction.UP and amount <= -limit)


def _finding(entry: RuleState, state: _State) -> Finding:
    rule = entry.rule
    series = rule.series
    evidence: dict[str, float | int | str | None] = {"rule": rule.id, "series": series}
    if rule.condition is Condition.NO_DATA:
        minutes = (entry.value or 0.0) / 60.0
        title = f"{rule.name} since step {entry.since:,}"
        message = f"No {series} for {_minutes(minutes)}: the last value was logged at step {entry.since:,}."
        evidence |= {"silent_minutes": round(minutes, 2), "limit_minutes": rule.value}
    else:
        value = "–" if entry.value is None else f"{entry.value:.4g}"
        row = f", {entry.held} values in a row" if entry.held > 1 else ""
        title = f"{rule.name} at step {entry.since:,}"
        message = f"{_upper(series)} is {value}, {_limit(entry)}{row}."
        evidence |= {"value": entry.value, "limit": rule.value}
        if rule.condition is Condition.CHANGE:
            evidence |= {"value_before": entry.reference, "steps_back": rule.window}
        if rule.condition is Condition.Z_SCORE:
            evidence |= {"median": entry.reference, "deviations": entry.deviations}
    return Finding(
        kind=AlertKind.CUSTOM_RULE,
        level=rule.level,
        step=entry.since,
        title=title,
        message=message,
        layers=entry.layers,
        evidence=evidence,
        key=rule.id,
    )


def _limit(entry: RuleState) -> str:
    """Return the limit that the value exceeded, in words."""
    rule = entry.rule
    reference = "–" if entry.reference is None else f"{entry.reference:.4g}"
    match rule.condition:
        case Condition.ABOVE | Condition.BELOW:
            return f"{rule.condition.value} {rule.value:.4g}"
        case Condition.CHANGE:
            return f"after {reference} {rule.window:,} steps earlier"
        case _:
            return f"{0.0 if entry.deviations is None else entry.deviations:+.1f} deviations from its usual {reference}"


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} seconds" if minutes < 1 else f"{minutes:.0f} minutes" if minutes >= 2 else "a minute"


def _upper(text: str) -> str:
    """Return the words with a capital letter, unless they begin with a name that a user chose."""
    return text[0].upper() + text[1:] if text.startswith(("largest", "smallest", "mean")) else text
