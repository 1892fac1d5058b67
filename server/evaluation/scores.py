"""Scores of the detectors: recall, precision, false alarms, lead, and the calibration of the forecasts. Pure.

Only what users see at level warning or above counts; the bad batches that were named are listed besides. An *alarm* is
a spike-predicted finding that reaches warning after 20 steps without one, and again every 100 steps while it holds.
Rules:

* An event is recalled by an alarm in the 100 steps before its onset. If a fault was injected into the run, only alarms
  from that step on count.
* An alarm outside all such ranges is false. From an onset to 20 steps after its end, and around minor events (not in
  controls), it is neither. The first ten steps of a run are left out.
* The same number of alarms at random steps of the same runs gives the recall that chance would have.

Calibration compares the forecast of the first alarm of each event to its onset.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from server.evaluation.alarms import SKIP, Alarm, replay
from server.evaluation.labels import LabelledEvent, label
from server.evaluation.recording import CONTROL, Recording

EARLY: Final = 100
"""Number of steps before an onset in which an alarm is early."""
AFTER: Final = 20
"""Number of steps after an event in which an alarm is neither early nor false."""
DRAWS: Final = 40
"""Number of random draws behind the recall of chance."""
INTRINSIC: Final = ("", "adam-preconditioner", "norm-free", "hard-sample", "warmup", "divergence", "underflow")
"""Causes that arise in training by themselves; "" if unknown."""


@dataclass(frozen=True, kw_only=True)
class ScoredEvent:
    """A labelled event in steps, with the first step at which an alarm for it is early."""

    first: int
    onset: int
    peak: int
    end: int


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """One run compared to its labels, in steps of the recording."""

    name: str
    cause: str
    family: str
    is_swell: bool
    """Whether its labels are uncertain; see `Recording`."""
    steps: int
    """Number of recorded steps."""
    events: tuple[ScoredEvent, ...]
    alarms: tuple[Alarm, ...]
    recalled: tuple[tuple[ScoredEvent, Alarm], ...]
    """Recalled events, each with its first early alarm."""
    useful: int
    """Number of alarms before an event's peak."""
    false: tuple[int, ...]
    """Steps of the false alarms."""
    clean_steps: int
    """Number of steps at which an alarm would be false."""
    kinds: tuple[str, ...]
    """Sorted kinds of all findings at level warning or above."""
    bad_batches: tuple[int, ...]
    """Steps of the batches that were named bad, at whatever level; see `Replayed`."""

    @property
    def is_intrinsic(self) -> bool:
        """Whether the events of the run arose by themselves."""
        return self.cause in INTRINSIC

    @property
    def is_control(self) -> bool:
        """Whether the run is a healthy control."""
        return self.cause == CONTROL


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The scores of several runs and their totals."""

    runs: tuple[RunScore, ...]
    random_recall: float
    """Recall of the same number of alarms at random steps."""
    events: int = 0
    recalled: int = 0
    fault_events: int = 0
    """Number of events after injected faults."""
    fault_recalled: int = 0
    precision: float = 0.0
    false_per_1000_control: float = 0.0
    false_per_1000_clean: float = 0.0
    median_lead: float | None = None
    """Median steps from the first early alarm to the onset."""
    median_lead_to_peak: float | None = None
    in_band: float | None = None
    """Share of recalled events whose onset lay within the first forecast range."""
    within_factor_two: float | None = None
    """Share of recalled events that came after half to twice the forecast number of steps."""
    bad_batches_named: tuple[str, ...] = field(default=())
    """Names of the runs in which a bad batch was reported."""


def score(recording: Recording) -> RunScore:
    """Replay one recording and compare its alarms to its labels."""
    replayed = replay(recording)
    alarms = replayed.alarms
    steps = [sample.step for sample in recording.samples]
    labelled, minor = label(recording.losses)
    events = [_scored(event, steps, recording) for event in labelled]
    clean = set(steps[SKIP:])
    for event in events:
        clean -= set(range(event.first, event.end + AFTER + 1))
    if recording.cause != CONTROL:
        for one in minor:
            clean -= set(range(steps[one.onset] - EARLY, steps[one.end] + AFTER + 1))
    judged = [event for event in events if event.onset > steps[min(SKIP, len(steps)) - 1]]
    recalled = []
    previous_end = 0
    for event in events:
        early = [a for a in alarms if max(event.first, previous_end + 1) <= a.step < event.onset]
        previous_end = event.end
        if early and event in judged:
            recalled.append((event, early[0]))
    return RunScore(
        name=recording.name,
        cause=recording.cause,
        family=recording.family,
        is_swell=recording.is_swell,
        steps=len(steps),
        events=tuple(judged),
        alarms=alarms,
        recalled=tuple(recalled),
        useful=sum(any(e.first <= a.step < max(e.peak, e.onset + 1) for e in events) for a in alarms),
        false=tuple(a.step for a in alarms if a.step in clean),
        clean_steps=len(clean),
        kinds=replayed.kinds,
        bad_batches=replayed.bad_batches,
    )


def summarise(runs: Iterable[RunScore]) -> Summary:
    """Add up the scores of several runs.

    >>> summarise([]).median_lead is None
    True
    """
    scores = tuple(runs)
    intrinsic = [run for run in scores if run.is_intrinsic]
    faulty = [run for run in scores if not run.is_intrinsic and not run.is_control]
    controls = [run for run in scores if run.is_control]
    pairs = [pair for run in intrinsic for pair in run.recalled]
    dated = [(event, alarm, alarm.predicted) for event, alarm in pairs if alarm.predicted is not None]
    useful = sum(run.useful for run in scores)
    false = sum(len(run.false) for run in scores)
    ratios = [(event.onset - alarm.step) / max(1, forecast.best - alarm.step) for event, alarm, forecast in dated]
    return Summary(
        runs=scores,
        random_recall=_random_recall(intrinsic),
        events=sum(len(run.events) for run in intrinsic),
        recalled=len(pairs),
        fault_events=sum(len(run.events) for run in faulty),
        fault_recalled=sum(len(run.recalled) for run in faulty),
        precision=useful / max(1, useful + false),
        false_per_1000_control=_per_1000(controls),
        false_per_1000_clean=_per_1000(scores),
        median_lead=_median([event.onset - alarm.step for event, alarm in pairs]),
        median_lead_to_peak=_median([event.peak - alarm.step for event, alarm in pairs]),
        in_band=_share([forecast.low <= event.onset <= forecast.high for event, _, forecast in dated]),
        within_factor_two=_share([0.5 <= ratio <= 2.0 for ratio in ratios]),
        bad_batches_named=tuple(run.name for run in scores if run.bad_batches),
    )


def _scored(event: LabelledEvent, steps: list[int], recording: Recording) -> ScoredEvent:
    onset, trigger = steps[event.onset], steps[event.trigger]
    first = onset - EARLY
    if recording.cause not in INTRINSIC:
        faults = [step for step in recording.fault_steps if onset - EARLY <= step <= trigger]
        first = max(faults, default=onset)
    return ScoredEvent(first=max(first, steps[0]), onset=onset, peak=steps[event.peak], end=steps[event.end])


def _random_recall(runs: list[RunScore]) -> float:
    """Return the recall of the same number of alarms at random steps, the mean of 40 draws with a fixed seed."""
    generator = np.random.default_rng(0)
    count = sum(len(run.events) for run in runs)
    hits = 0
    for run in runs:
        if not run.alarms or not run.events:
            continue
        draws = generator.integers(SKIP, run.steps, (DRAWS, len(run.alarms)))
        for event in run.events:
            hits += int(((draws >= event.first) & (draws < event.onset)).any(axis=1).sum())
    return hits / DRAWS / max(1, count)


def _per_1000(runs: Iterable[RunScore]) -> float:
    scores = list(runs)
    return 1000 * sum(len(run.false) for run in scores) / max(1, sum(run.clean_steps for run in scores))


def _median(values: list[int]) -> float | None:
    return float(np.median(values)) if values else None


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
