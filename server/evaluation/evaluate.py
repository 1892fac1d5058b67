"""Scores the detectors on recorded runs: recall, precision, false alarms, lead, and the forecast's calibration.

What counts is what a user is told at level warning or above. An *alarm* is a spike-predicted finding that reaches
warning after 20 steps without one, and again every 100 steps while it stands. Rules:

* an event is recalled by an alarm in the 100 steps before its onset; where something was done to the run (a recorded
  fault step), only alarms from that step on count;
* an alarm outside all such windows is false, except from an onset to 20 steps after its end, and around minor events
  (not in controls), where it is neither; the first ten steps of a run are left out;
* as many alarms at random steps of the same runs give the recall that chance would have.

Calibration: the date of the first alarm of each event against its onset.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from server.detectors.detector_suite import DetectorSuite
from server.evaluation.labels import Labelled, label
from server.evaluation.recordings import CONTROL, Recording, read_recordings
from server.models import AlertKind, AlertLevel, PredictedStep

EARLY: Final = 100
"""Steps before an onset in which an alarm is early; a standing alarm counts again after as many."""
REARM: Final = 20
AFTER: Final = 20
SKIP: Final = 10
DRAWS: Final = 40
INTRINSIC: Final = ("", "adam-preconditioner", "norm-free", "hard-sample", "warmup", "divergence", "underflow")
"""Causes that arise in training by themselves; "" where nobody said."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    step: int
    predicted: PredictedStep | None


@dataclass(frozen=True, kw_only=True)
class Spell:
    """A labelled event and the steps in which an alarm for it is early."""

    first: int
    onset: int
    peak: int
    end: int


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """One run held against its labels. Steps are those of the recording."""

    name: str
    cause: str
    steps: int
    spells: tuple[Spell, ...]
    alarms: tuple[Alarm, ...]
    recalled: tuple[tuple[Spell, Alarm], ...]
    """Each event with its first early alarm."""
    useful: int
    """Alarms before an event's peak."""
    false: tuple[int, ...]
    clean_steps: int
    kinds: tuple[str, ...]
    """Kinds of finding held at warning or above at any step, sorted."""

    @property
    def is_intrinsic(self) -> bool:
        return self.cause in INTRINSIC

    @property
    def is_control(self) -> bool:
        return self.cause == CONTROL


@dataclass(frozen=True, kw_only=True)
class Report:
    """The scores of all runs, and what they come to."""

    runs: tuple[RunScore, ...]
    random_recall: float
    events: int = 0
    recalled: int = 0
    fault_events: int = 0
    fault_recalled: int = 0
    precision: float = 0.0
    false_per_1000_control: float = 0.0
    false_per_1000_clean: float = 0.0
    median_lead: float | None = None
    median_lead_to_peak: float | None = None
    in_band: float | None = None
    """Share of recalled events whose onset lay within the first dated band."""
    within_factor_two: float | None = None
    """Share of them that came after half to twice the steps that the date said."""
    bad_batches_named: tuple[str, ...] = field(default=())
    """Runs in which a bad batch was named."""


def evaluate(directory: Path | None) -> Report:
    """Score the detectors on every recording of a directory. Raises `ValueError` without one, or where it has none."""
    if directory is None:
        raise ValueError("give the directory of recordings (*.npz) to evaluate on")
    return summarise([score(recording) for recording in read_recordings(directory)])


def main(directory: Path | None) -> int:
    """Evaluate and print; the exit code: 2 where there is nothing to evaluate on."""
    try:
        report = evaluate(directory)
    except (ValueError, OSError) as error:
        print(f"spikewatch evaluate: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return 2
    print_report(report)
    return 0


def score(recording: Recording) -> RunScore:
    """Replay one recording and hold the alarms against its labels."""
    alarms, kinds = replay(recording)
    steps = [sample.step for sample in recording.samples]
    events, minor = label(recording.losses)
    spells = [_spell(event, steps, recording) for event in events]
    clean = set(steps[SKIP:])
    for spell in spells:
        clean -= set(range(spell.first, spell.end + AFTER + 1))
    if recording.cause != CONTROL:
        for event in minor:
            clean -= set(range(steps[event.onset] - EARLY, steps[event.end] + AFTER + 1))
    judged = [spell for spell in spells if spell.onset > steps[min(SKIP, len(steps)) - 1]]
    recalled = []
    previous_end = 0
    for spell in spells:
        early = [a for a in alarms if max(spell.first, previous_end + 1) <= a.step < spell.onset]
        previous_end = spell.end
        if early and spell in judged:
            recalled.append((spell, early[0]))
    return RunScore(
        name=recording.name,
        cause=recording.cause,
        steps=len(steps),
        spells=tuple(judged),
        alarms=tuple(alarms),
        recalled=tuple(recalled),
        useful=sum(any(s.first <= a.step < max(s.peak, s.onset + 1) for s in spells) for a in alarms),
        false=tuple(a.step for a in alarms if a.step in clean),
        clean_steps=len(clean),
        kinds=kinds,
    )


def replay(recording: Recording) -> tuple[list[Alarm], tuple[str, ...]]:
    """The alarms that the product raises on a recording, and the kinds it held at warning or above."""
    monitor = DetectorSuite()
    alarms: list[Alarm] = []
    kinds: set[str] = set()
    last_held: int | None = None
    for position, sample in enumerate(recording.samples):
        verdict = monitor.update(sample)
        loud = [finding for finding in verdict.findings if finding.level is not AlertLevel.WATCH]
        kinds |= {finding.kind.value for finding in loud}
        predicted = next((f for f in loud if f.kind is AlertKind.SPIKE_PREDICTED), None)
        if predicted is None or position < SKIP:
            continue
        is_new = last_held is None or sample.step - last_held > REARM
        if is_new or sample.step - alarms[-1].step >= EARLY:
            alarms.append(Alarm(step=sample.step, predicted=predicted.predicted_step))
        last_held = sample.step
    return alarms, tuple(sorted(kinds))


def _spell(event: Labelled, steps: list[int], recording: Recording) -> Spell:
    onset, trigger = steps[event.onset], steps[event.trigger]
    first = onset - EARLY
    if recording.cause not in INTRINSIC:
        faults = [step for step in recording.fault_steps if onset - EARLY <= step <= trigger]
        first = max(faults, default=onset)
    return Spell(first=max(first, steps[0]), onset=onset, peak=steps[event.peak], end=steps[event.end])


def summarise(runs: Iterable[RunScore]) -> Report:
    """Add the scores of runs up."""
    scores = tuple(runs)
    intrinsic = [run for run in scores if run.is_intrinsic]
    faulty = [run for run in scores if not run.is_intrinsic and not run.is_control]
    controls = [run for run in scores if run.is_control]
    pairs = [pair for run in intrinsic for pair in run.recalled]
    dated = [(spell, alarm, alarm.predicted) for spell, alarm in pairs if alarm.predicted is not None]
    useful = sum(run.useful for run in scores)
    false = sum(len(run.false) for run in scores)
    ratios = [(spell.onset - alarm.step) / max(1, date.best - alarm.step) for spell, alarm, date in dated]
    return Report(
        runs=scores,
        random_recall=_random_recall(intrinsic),
        events=sum(len(run.spells) for run in intrinsic),
        recalled=len(pairs),
        fault_events=sum(len(run.spells) for run in faulty),
        fault_recalled=sum(len(run.recalled) for run in faulty),
        precision=useful / max(1, useful + false),
        false_per_1000_control=_per_1000(controls),
        false_per_1000_clean=_per_1000(scores),
        median_lead=_median([spell.onset - alarm.step for spell, alarm in pairs]),
        median_lead_to_peak=_median([spell.peak - alarm.step for spell, alarm in pairs]),
        in_band=_share([date.low <= spell.onset <= date.high for spell, _, date in dated]),
        within_factor_two=_share([0.5 <= ratio <= 2.0 for ratio in ratios]),
        bad_batches_named=tuple(run.name for run in scores if AlertKind.BAD_BATCH.value in run.kinds),
    )


def print_report(report: Report, file: TextIO | None = None) -> None:
    """The table that `spikewatch evaluate` prints."""
    out = sys.stdout if file is None else file
    width = max((len(run.name) for run in report.runs), default=4)
    print(f"{'run':{width}}  {'cause':20} {'events':>6} {'early':>5} {'alarms':>6} {'false':>5}  leads", file=out)
    for run in report.runs:
        leads = " ".join(str(spell.onset - alarm.step) for spell, alarm in run.recalled)
        print(
            f"{run.name:{width}}  {run.cause:20} {len(run.spells):6} {len(run.recalled):5} "
            f"{len(run.alarms):6} {len(run.false):5}  {leads}",
            file=out,
        )
    lines = (
        ("early recall", f"{report.recalled}/{report.events} (as many alarms at random: {report.random_recall:.2f})"),
        ("of injected faults", f"{report.fault_recalled}/{report.fault_events}"),
        ("precision", f"{report.precision:.2f}"),
        ("false alarms per 1,000 healthy steps", f"{report.false_per_1000_control:.2f}"),
        ("false alarms per 1,000 event-free steps", f"{report.false_per_1000_clean:.2f}"),
        ("median lead to onset, to peak", f"{_text(report.median_lead)}, {_text(report.median_lead_to_peak)} steps"),
        ("onset within the first band", _text(report.in_band, ".2f")),
        ("date within a factor of two", _text(report.within_factor_two, ".2f")),
        ("bad batch named in", ", ".join(report.bad_batches_named) or "none"),
    )
    print(file=out)
    for name, value in lines:
        print(f"{name:40} {value}", file=out)


def _random_recall(runs: list[RunScore]) -> float:
    """Early recall of as many alarms at random steps, mean of 40 draws from a fixed seed."""
    generator = np.random.default_rng(0)
    events = sum(len(run.spells) for run in runs)
    hits = 0
    for run in runs:
        if not run.alarms or not run.spells:
            continue
        draws = generator.integers(SKIP, run.steps, (DRAWS, len(run.alarms)))
        for spell in run.spells:
            hits += int(((draws >= spell.first) & (draws < spell.onset)).any(axis=1).sum())
    return hits / DRAWS / max(1, events)


def _per_1000(runs: Iterable[RunScore]) -> float:
    scores = list(runs)
    return 1000 * sum(len(run.false) for run in scores) / max(1, sum(run.clean_steps for run in scores))


def _median(values: list[int]) -> float | None:
    return float(np.median(values)) if values else None


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _text(value: float | None, form: str = ".0f") -> str:
    return "–" if value is None else format(value, form)
