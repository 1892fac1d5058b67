"""Rules that people wrote, over one writer's stream: a sample in, what holds out.

Owns when a rule begins and ends to hold, and the little history that takes; `alerts.lifecycle` makes alerts of it. A
pure function of the stream, like the detectors beside it: chunking cannot matter, the state round-trips, NaN and
infinities change nothing that they are not about. Bounded: of each rule a few numbers, and at most 500 values.

* Layers are reduced to one number first, so a rule costs the same whatever it watches. Not measured (NaN) is left out.
* above, below: the value against a threshold. An infinite value is above every one; NaN is the business of the
  detector of non-finite values.
* change: against the value `window` steps before (of long windows to within a hundredth). By a factor both must be
  positive.
* z-score: (value − median)/σ of the last `window` values, σ = interquartile range/1.349 (that of a normal
  distribution), and a thousandth of the median at least, so that a constant is silent. Against the past alone, and not
  before half the window is full.
* no data: the clock decides, which `find_silent` is told; see there.

A rule begins when its condition held at `for_steps` values in a row, and ends when it did not hold at as many.

>>> from client_sdk.vocabulary import Condition
>>> from server.rule import Rule
>>> bank = RuleEvaluator()
>>> rule = Rule(id="high", name="Loss is high", scalar="loss", condition=Condition.ABOVE, value=2.0)
>>> bank.replace_rules((rule,), "1")
()
>>> [len(bank.update(Sample(step=i, time=i, scalars={"loss": x}), i).findings) for i, x in enumerate((1.0, 3.0, 1.0))]
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
"""Values that a change looks back through: of longer windows every so many steps are kept."""
QUARTILES_TO_DEVIATION: Final = 1.349
"""The interquartile range of a normal distribution in units of its standard deviation."""
LEAST_SPREAD: Final = 1e-3
"""Share of the median that a deviation is taken for at least."""
PATIENCE: Final = 3.0
"""Times the longest usual pause, under which no data is nothing to speak of."""
PAUSE_DECAY: Final = 0.9995
"""A value: a long pause counts as usual for some thousand values."""
BOUND: Final = 1e300
"""Greater values have no difference and no ratio."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What one sample brought."""

    findings: tuple[Finding, ...]
    """Those that hold now."""
    returned: tuple[tuple[str, float], ...] = ()
    """Rules whose data came back, with the seconds that it was away: their alerts are over at once."""


NOTHING: Final = Heard(findings=())


class Watch(msgspec.Struct):
    """One rule and what it remembers."""

    rule: Rule
    firing: bool = False
    held: int = 0
    """Values in a row at which the condition held."""
    missed: int = 0
    since: int = 0
    """Step of the first of them."""
    value: float | None = None
    """The last one."""
    reference: float | None = None
    """What it was held against: the value before, or the median."""
    deviations: float | None = None
    layers: tuple[str, ...] = ()
    fired_at: float | None = None
    """Training clock (of no data: the server's) at the last beginning."""
    seen_at: float | None = None
    """Server's clock at the last value."""
    pause: float = 0.0
    """The longest usual one, seconds."""
    steps: list[int] = []
    values: list[float] = []

    @property
    def limit(self) -> float:
        """Seconds of silence after which no data speaks."""
        return max(60.0 * self.rule.value, PATIENCE * self.pause)

    def is_rested(self, time: float) -> bool:
        """Whether the pause after the last alert is over. A clock that went back has no say."""
        return self.fired_at is None or not 0 <= time - self.fired_at < 60.0 * self.rule.cooldown_minutes

    def renew(self) -> None:
        """A new attempt: the past of the other one tells nothing. The pauses and the cooldown stay."""
        self.firing, self.held, self.missed, self.value = False, 0, 0, None
        self.steps, self.values = [], []


class _State(msgspec.Struct):
    version: int = SNAPSHOT_VERSION
    rules: str = ""
    """`RuleSet.version` of the rules below."""
    attempt: int = 0
    last_step: int = 0
    seen_at: float | None = None
    """Server's clock at the last sample."""
    watches: list[Watch] = []


class RuleEvaluator:
    """The rules that watch one run. Not thread-safe."""

    def __init__(self) -> None:
        self._state = _State()
        self._ordered: dict[str, list[float]] = {}
        self._read = RuleValues()

    @property
    def version(self) -> str:
        """`RuleSet.version` of the rules that were adopted last."""
        return self._state.rules

    @property
    def statistics(self) -> frozenset[str]:
        """The layer statistics that the rules watch."""
        return frozenset(watch.rule.statistic for watch in self._state.watches if watch.rule.statistic is not None)

    @property
    def last_step(self) -> int:
        return self._state.last_step

    @property
    def due_at(self) -> float | None:
        """Unix time at which `find_silent` has something to say if nothing comes; None: never."""
        due = []
        for watch in self._state.watches:
            if watch.rule.condition is Condition.NO_DATA and not watch.firing and watch.seen_at is not None:
                rested = -math.inf if watch.fired_at is None else watch.fired_at + 60.0 * watch.rule.cooldown_minutes
                due.append(max(watch.seen_at + watch.limit, rested))
        return min(due, default=None)

    def replace_rules(self, rules: Sequence[Rule], version: str) -> tuple[str, ...]:
        """From the next sample on these rules and no others. One that did not change goes on as it was.

        Returns the ids of those that held and are gone or changed: their alerts are over.
        """
        state = self._state
        before = {watch.rule.id: watch for watch in state.watches}
        kept: list[Watch] = []
        for rule in rules:
            watch = before.get(rule.id)
            if watch is not None and watch.rule == rule:
                kept.append(before.pop(rule.id))
            else:
                kept.append(Watch(rule=rule, seen_at=state.seen_at))
        state.rules, state.watches = version, kept
        self._ordered.clear()
        return tuple(watch.rule.id for watch in before.values() if watch.firing)

    def update(self, sample: Sample, at: float) -> Heard:
        """What holds after this sample. ``at``: when it arrived, by the server's clock; only no data goes by it."""
        state = self._state
        if sample.attempt != state.attempt:
            state.attempt = sample.attempt
            for watch in state.watches:
                watch.renew()
        state.last_step = sample.step
        state.seen_at = at
        if not state.watches:
            return NOTHING
        returned: list[tuple[str, float]] = []
        for watch in state.watches:
            if watch.rule.condition is Condition.NO_DATA:
                away = self._note_arrival(watch, sample, at)
                if away is not None:
                    returned.append((watch.rule.id, away))
                continue
            value = self._read.value(watch.rule, sample)
            if value is not None:
                self._judge(watch, sample, value)
        return Heard(findings=self.findings(), returned=tuple(returned))

    def findings(self) -> tuple[Finding, ...]:
        """Those that hold."""
        return tuple(_finding(watch, self._state) for watch in self._state.watches if watch.firing)

    def find_silent(self, now: float, since: float = -math.inf) -> tuple[Finding, ...]:
        """The rules about no data that begin to hold at ``now``, though nothing came.

        ``since``: nobody was there to hear what came before; silence counts from then.
        """
        told = []
        for watch in self._state.watches:
            if watch.rule.condition is not Condition.NO_DATA or watch.firing or watch.seen_at is None:
                continue
            if now - max(watch.seen_at, since) >= watch.limit and watch.is_rested(now):
                watch.firing, watch.fired_at, watch.since = True, now, self._state.last_step
                watch.value = now - watch.seen_at
                told.append(_finding(watch, self._state))
        return tuple(told)

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> RuleEvaluator:
        """Raises `ValueError` for anything but a snapshot of this version (`msgspec.DecodeError` is one)."""
        bank = cls()
        state = msgspec.msgpack.decode(data, type=_State)
        if state.version != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot version {state.version}, expected {SNAPSHOT_VERSION}")
        bank._state = state
        return bank

    def _note_arrival(self, watch: Watch, sample: Sample, at: float) -> float | None:
        """Seconds that the data was away, where an alert is open about it."""
        if not self._read.is_there(watch.rule, sample):
            return None
        away = 0.0 if watch.seen_at is None else max(at - watch.seen_at, 0.0)
        watch.pause = max(away, PAUSE_DECAY * watch.pause)
        watch.seen_at = at
        was_firing, watch.firing = watch.firing, False
        return away if was_firing else None

    def _judge(self, watch: Watch, sample: Sample, value: float) -> None:
        """Move one rule by one value."""
        rule = watch.rule
        match rule.condition:
            case Condition.ABOVE:
                holds = value > rule.value
            case Condition.BELOW:
                holds = value < rule.value
            case Condition.CHANGE:
                if abs(value) > BOUND:
                    return
                holds = _has_changed(watch, sample.step, value)
            case _:
                if abs(value) > BOUND:
                    return
                holds = self._is_unusual(watch, value)
        watch.value = value
        if not holds:
            watch.held = 0
            watch.missed += 1
            watch.firing = watch.firing and watch.missed < rule.for_steps
            return
        if watch.held == 0:
            watch.since = sample.step
        watch.held += 1
        watch.missed = 0
        if not watch.firing and watch.held >= rule.for_steps and watch.is_rested(sample.time):
            watch.firing, watch.fired_at = True, sample.time
            watch.layers = self._read.leaders(rule, sample)

    def _is_unusual(self, watch: Watch, value: float) -> bool:
        rule = watch.rule
        ordered = self._ordered.get(rule.id)
        if ordered is None:
            ordered = self._ordered[rule.id] = sorted(watch.values)
        count = len(ordered)
        unusual = False
        if count >= rule.window // 2:
            centre = ordered[count // 2] if count % 2 else 0.5 * (ordered[count // 2 - 1] + ordered[count // 2])
            spread = (ordered[(3 * count) // 4] - ordered[count // 4]) / QUARTILES_TO_DEVIATION
            z = (value - centre) / max(spread, LEAST_SPREAD * abs(centre), 1e-300)
            unusual = _is_beyond(rule.direction, z, rule.value)
            watch.reference, watch.deviations = centre, z
        watch.values.append(value)
        insort(ordered, value)
        if len(watch.values) > rule.window:
            del ordered[bisect_left(ordered, watch.values.pop(0))]
        return unusual


def _has_changed(watch: Watch, step: int, value: float) -> bool:
    rule, steps, values = watch.rule, watch.steps, watch.values
    while len(steps) > 1 and steps[1] <= step - rule.window:
        del steps[0], values[0]
    changed = False
    if steps and steps[0] <= step - rule.window:
        before = watch.reference = values[0]
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


def _finding(watch: Watch, state: _State) -> Finding:
    rule = watch.rule
    series = rule.series
    evidence: dict[str, float | int | str | None] = {"rule": rule.id, "series": series}
    if rule.condition is Condition.NO_DATA:
        minutes = (watch.value or 0.0) / 60.0
        title = f"{rule.name} since step {watch.since:,}"
        message = f"No {series} for {_minutes(minutes)}: the last came at step {watch.since:,}."
        evidence |= {"silent_minutes": round(minutes, 2), "limit_minutes": rule.value}
    else:
        value = "–" if watch.value is None else f"{watch.value:.4g}"
        row = f", {watch.held} values in a row" if watch.held > 1 else ""
        title = f"{rule.name} at step {watch.since:,}"
        message = f"{_upper(series)} is {value}, {_limit(watch)}{row}."
        evidence |= {"value": watch.value, "limit": rule.value}
        if rule.condition is Condition.CHANGE:
            evidence |= {"value_before": watch.reference, "steps_back": rule.window}
        if rule.condition is Condition.Z_SCORE:
            evidence |= {"median": watch.reference, "deviations": watch.deviations}
    return Finding(
        kind=AlertKind.CUSTOM_RULE,
        level=rule.level,
        step=watch.since,
        title=title,
        message=message,
        layers=watch.layers,
        evidence=evidence,
        key=rule.id,
    )


def _limit(watch: Watch) -> str:
    """What the value went beyond."""
    rule = watch.rule
    reference = "–" if watch.reference is None else f"{watch.reference:.4g}"
    match rule.condition:
        case Condition.ABOVE | Condition.BELOW:
            return f"{rule.condition.value} {rule.value:.4g}"
        case Condition.CHANGE:
            return f"after {reference} {rule.window:,} steps before"
        case _:
            return f"{0.0 if watch.deviations is None else watch.deviations:+.1f} deviations from its usual {reference}"


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} seconds" if minutes < 1 else f"{minutes:.0f} minutes" if minutes >= 2 else "a minute"


def _upper(text: str) -> str:
    """A sentence begins; names that people gave stay as they are."""
    return text[0].upper() + text[1:] if text.startswith(("greatest", "least", "mean")) else text
