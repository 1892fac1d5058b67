"""Labels of the spikes in a recorded loss: the ground truth that alarms are scored against. Looks both ways in time.

With m and s the median and 1.4826·MAD of the last 40 losses outside events, and L the first loss, a spike is triggered
at t by

* two of the losses t, t+1, t+2 (t among them) above m + max(6 s, min(max(0.2 m, 0.01 L), max(2 m, 0.001 L))), or
* one loss above m + max(16 s, 0.5 m, 0.05 L), or a loss that is not finite.

Its onset is the first loss of the rise to the trigger (gaps of two allowed) above m + max(3 s, 0.05 m, 0.001 L), not
before the lowest of the last 60 losses. It ends with three losses under a quarter of the peak above m, or 150 steps
after the onset. Until the loss is back at m, another spike must rise by half above the last ten losses. Two spikes less
than 20 steps apart are one. *Minor* events need not be recalled and are not false alarms either. They pass the same
rules with floors of 2 m and 10⁻⁷ L, or are a rise of a smooth loss by a quarter and six deviations of its one-step
changes within 15 steps.

>>> losses = np.concatenate([np.ones(60), [3.0, 5.0, 3.0], np.ones(20)])
>>> events, minor = label(losses)
>>> [(event.onset, event.peak) for event in events]
[(60, 61)]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.detectors.robust import median, median_and_spread

WINDOW: Final = 40
"""Number of losses in the median."""
LONGEST: Final = 150
"""Number of steps after which an event ends."""
RISE_STEPS: Final = 60
"""Number of losses that a rise is followed back at most."""
GAP: Final = 20
"""Number of steps between two spikes below which they are one."""
SMOOTH: Final = 15
"""Number of steps within which a smooth loss must rise."""
Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LabelledEvent:
    """One event, in positions of the loss series."""

    onset: int
    trigger: int
    peak: int
    end: int
    height: float
    """Largest loss above `base`."""
    base: float
    """Median of the losses before the event."""
    finite: bool = True
    """Whether the largest loss is finite."""


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Smallest rise of a loss in deviations, relative to the median, and relative to the first loss."""

    deviations: float
    relative: float
    absolute: float


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """Floors of the rules by which events are found."""

    sustained: Floors
    single: Floors
    small: Floors
    """Floors of a small loss, used instead of `sustained` where they are lower."""
    onset: Floors


EVENT: Final = LabelRules(
    sustained=Floors(deviations=6, relative=0.2, absolute=0.01),
    single=Floors(deviations=16, relative=0.5, absolute=0.05),
    small=Floors(deviations=6, relative=2.0, absolute=1e-3),
    onset=Floors(deviations=3, relative=0.05, absolute=1e-3),
)
MINOR: Final = LabelRules(
    sustained=Floors(deviations=6, relative=2.0, absolute=1e-7),
    single=Floors(deviations=16, relative=2.0, absolute=1e-7),
    small=Floors(deviations=6, relative=2.0, absolute=1e-7),
    onset=Floors(deviations=3, relative=0.05, absolute=1e-7),
)


def label(losses: Losses) -> tuple[list[LabelledEvent], list[LabelledEvent]]:
    """Return the events and the minor events of a loss series, shape (steps,)."""
    if not len(losses):
        return [], []
    events = _merge(_Scan(losses, EVENT).run())
    taken = np.zeros(len(losses) + 10, dtype=bool)
    for event in events:
        taken[max(0, event.onset - 5) : event.end + 5] = True
    minor = sorted(_merge(_Scan(losses, MINOR).run()) + _bumps(losses), key=lambda event: event.onset)
    return events, [event for event in minor if not taken[event.onset : event.end + 1].any()]


class _Scan:
    """One pass over a loss series."""

    def __init__(self, losses: Losses, rules: LabelRules) -> None:
        self.losses, self.rules = losses, rules
        self.filled = np.where(np.isfinite(losses), losses, np.inf)
        self.scale = float(losses[0])
        self.base_values: list[float] = [float(losses[0])]
        self.tail_since: int | None = None
        self.found: list[LabelledEvent] = []

    def run(self) -> list[LabelledEvent]:
        at = 1
        while at < len(self.losses):
            in_tail = self.tail_since is not None
            recent = [float(x) for x in self.losses[max(0, at - 10) : at]] if in_tail else self.base_values[-WINDOW:]
            base, deviation = median_and_spread(recent)
            if not self._triggered(at, base, deviation, in_tail):
                self._learn(at)
                at += 1
                continue
            event = self._follow(at, base, deviation)
            self.found.append(event)
            if not event.finite:
                break
            at = event.end + 1
            if event.end - event.onset >= LONGEST - 1 and not self._is_back(event, base):
                self.base_values = [float(x) for x in self.losses[max(0, event.end - WINDOW + 1) : event.end + 1]]
                if median(self.base_values) > 3 * self.scale and median(list(self.losses[-WINDOW:])) > 3 * self.scale:
                    break
            else:
                self.tail_since = at
        return self.found

    def _height(self, floors: Floors, base: float, deviation: float, relative: float | None = None) -> float:
        share = floors.relative if relative is None else max(floors.relative, relative)
        return max(floors.deviations * deviation, share * base, floors.absolute * self.scale)

    def _triggered(self, at: int, base: float, deviation: float, in_tail: bool) -> bool:
        ahead = self.filled[at : at + 3]
        extra = 1.0 if len(self.base_values) < 10 else 0.5 if in_tail else None
        sustained = min(
            self._height(self.rules.sustained, base, deviation, extra), self._height(self.rules.small, base, deviation)
        )
        single = self._height(self.rules.single, base, deviation)
        over = ahead > base + sustained
        return bool((over[0] and over.sum() >= 2) or ahead[0] > base + single)

    def _learn(self, at: int) -> None:
        loss = float(self.losses[at])
        if self.tail_since is not None:
            base, deviation = median_and_spread(self.base_values[-WINDOW:])
            onset = replace(self.rules.onset, relative=self.rules.sustained.relative)
            if loss <= base + self._height(onset, base, deviation):
                self.tail_since = None
            elif at - self.tail_since > LONGEST:
                self.base_values, self.tail_since = [float(x) for x in self.losses[at - WINDOW : at]], None
        if self.tail_since is None:
            self.base_values.append(loss)

    def _follow(self, trigger: int, base: float, deviation: float) -> LabelledEvent:
        losses, filled = self.losses, self.filled
        low = base + self._height(self.rules.onset, base, deviation)
        first = max(trigger - RISE_STEPS, self.found[-1].end if self.found else 0, 0)
        if trigger > first:
            first += int(np.argmin(losses[first:trigger]))
        onset, gap, at = trigger, 0, trigger - 1
        while at > first and gap <= 2:
            onset, gap = (at, 0) if losses[at] > low else (onset, gap + 1)
            at -= 1
        peak = end = trigger
        back = 0
        while end < len(losses) - 1 and back < 3 and end - onset < LONGEST and np.isfinite(losses[end]):
            end += 1
            if filled[end] > filled[peak]:
                peak = end
            back = back + 1 if filled[end] < base + 0.25 * (filled[peak] - base) else 0
        return LabelledEvent(
            onset=onset,
            trigger=trigger,
            peak=peak,
            end=end,
            height=float(filled[peak] - base),
            base=base,
            finite=bool(np.isfinite(filled[peak])),
        )

    def _is_back(self, event: LabelledEvent, base: float) -> bool:
        last = self.losses[event.end - 2 : event.end + 1]
        return bool((last < base + 0.25 * event.height).all()) or len(self.losses) - 1 - event.peak < 3


def _merge(events: list[LabelledEvent]) -> list[LabelledEvent]:
    merged: list[LabelledEvent] = []
    for event in events:
        if not merged or event.onset - merged[-1].end >= GAP:
            merged.append(event)
            continue
        last = merged[-1]
        taller = event if event.height > last.height else last
        merged[-1] = replace(
            last, end=event.end, peak=taller.peak, height=taller.height, finite=last.finite and event.finite
        )
    return merged


def _bumps(losses: Losses) -> list[LabelledEvent]:
    """Return the small rises of a smooth loss."""
    with np.errstate(all="ignore"):
        logs = np.log(np.maximum(np.nan_to_num(losses, nan=1e30, posinf=1e30), 1e-30))
    changes = np.diff(logs)
    found = []
    at = WINDOW + 1
    while at < len(logs):
        past = [float(x) for x in changes[at - WINDOW - 1 : at - 4]]
        _, deviation = median_and_spread(past)
        lowest = at - SMOOTH + int(np.argmin(logs[at - SMOOTH : at]))
        is_bump = logs[at] - logs[lowest] >= max(math.log(1.25), 6 * deviation)
        if not is_bump or losses[at] - losses[lowest] < 1e-4 * losses[0]:
            at += 1
            continue
        peak = at + int(np.argmax(logs[at : at + SMOOTH]))
        height = float(losses[peak] - losses[lowest])
        found.append(
            LabelledEvent(onset=lowest + 1, trigger=at, peak=peak, end=peak, height=height, base=float(losses[lowest]))
        )
        at = peak + SMOOTH
    return found
