"""The constants of the alternation sign, cross-validated over families of recorded runs, and what the sign adds.

    python -m benchmarks.alternation_fit DIRECTORY … [--quick]

Reads recordings as `spikewatch evaluate` does, without curvature, and replays the predictor on them with the constants
as they are, and with one of them at another value of `GRID`. For each family, the constants that are best on the other
families are scored on it, so that no run has a say in the constants that it is judged by. The last row leaves out the
period-two component. Recordings of the same name in several directories count once, and slow swells are left out.
Minutes; ``--quick`` tries the chosen constants alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import msgspec
import numpy as np

from server.detectors import height, period_two, spike_predictor
from server.detectors.context import Context
from server.detectors.jump import JumpDetector
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Reading, Signals
from server.detectors.spike_predictor import SpikePredictor
from server.detectors.track_record import LOUD, TrackRecord
from server.evaluation.alarms import Alarm, Height, Replayed, rising
from server.evaluation.recordings import read_recordings
from server.evaluation.scores import RunScore, score
from server.evaluation.truth import Truth, truth_of
from server.models import Finding

Constants = Mapping[str, float]
GRID: Final[Mapping[str, tuple[float, ...]]] = {
    "ALTERNATING": (0.3, 0.5),
    "GROWING": (0.02, 0.08),
    "NEXT": (10, 40),
    "RIPPLE": (0.3, 1.0),
    "LEAST_PEAK": (0.01, 0.2),
}
"""Other values that are tried of each constant."""
OWNERS: Final[Mapping[str, ModuleType]] = {
    "ALTERNATING": period_two,
    "GROWING": period_two,
    "NEXT": spike_predictor,
    "RIPPLE": height,
    "LEAST_PEAK": spike_predictor,
}
PRECISION, FALSE_ALARMS = 0.90, 0.3
"""Least precision, and most false alarms per 1,000 event-free steps, of constants that are good enough."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The readings of one recording."""

    truth: Truth
    readings: tuple[Reading, ...]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Scores of several runs."""

    spikes: int
    early: int
    false: int
    precision: float
    healthy: float
    clean: float
    leads: tuple[float, float]
    dates: float
    heights: float

    @property
    def balance(self) -> float:
        """Number of early spikes less that of false alarms."""
        return self.early - self.false

    @property
    def recall_within_goals(self) -> float:
        """Number of early spikes if the goals are met, otherwise a negative number."""
        is_good = self.precision >= PRECISION and self.clean <= FALSE_ALARMS
        return self.early if is_good else self.precision - 1.0

    def row(self, title: str) -> str:
        """Return a line of the table."""
        lead, peak = self.leads
        return (
            f"| {title} | {self.early}/{self.spikes} | {self.precision:.2f} | {self.healthy:.2f} | {self.clean:.2f} | "
            f"{lead:.0f}, {peak:.0f} | {self.dates:.2f} | {self.heights:.2f} |"
        )


CRITERIA: Final[Mapping[str, Callable[[Totals], float]]] = {
    "early spikes less false alarms": lambda one: one.balance,
    "most early spikes within the goals": lambda one: one.recall_within_goals,
}
"""Worth of constants by their scores, by the name of the criterion."""
HEAD: Final = (
    "| | early | precision | false per 1,000 healthy steps | per 1,000 event-free steps | lead to onset, peak | "
    "date within a factor of two | height within a factor of three |\n|---|---|---|---|---|---|---|---|"
)


def read(directories: Iterable[Path]) -> list[Run]:
    """Return the runs of all directories that are not slow swells."""
    runs: dict[str, Run] = {}
    for directory in directories:
        for recording in read_recordings(directory):
            if recording.name in runs or recording.is_swell:
                continue
            signals = Signals()
            bare = recording.without_curvature()
            readings = tuple(signals.update(sample, sums_of(sample)) for sample in bare.samples)
            runs[recording.name] = Run(truth=truth_of(bare), readings=readings)
    return list(runs.values())


def alarms(run: Run) -> dict[Alarm, str]:
    """Return the alarms of the predictor alone on one run, tempered by its track record, each with its sign."""
    jump, predictor, record = JumpDetector(), SpikePredictor(), TrackRecord()
    loud: list[bool] = []
    told: dict[int, tuple[int, Finding]] = {}
    for reading in run.readings:
        context = Context(record=record, is_jumping=jump.active, prediction_level=predictor.level)
        jump.update(reading, context)
        predictor.update(reading, context)
        record.update(reading.step, context.prediction_level, due=context.prediction_due, spike=context.outcome_level)
        finding = predictor.finding(reading, context)
        loud.append(finding is not None and finding.level in LOUD)
        if finding is not None:
            told[reading.step] = reading.step, finding
    steps = [alarm.step for alarm in rising(run.truth.steps, loud)]
    return {_told(told[step]): str(told[step][1].evidence["sign"]) for step in steps}


def replay(run: Run) -> RunScore:
    """Return the score of the predictor alone on one run, tempered by its track record."""
    return score(run.truth, Replayed(alarms=tuple(alarms(run))))


def _told(report: tuple[int, Finding]) -> Alarm:
    step, finding = report
    rise = [finding.evidence.get(f"expected_rise{end}") for end in ("_low", "", "_high")]
    low, best, high = (value if isinstance(value, float) else 0.0 for value in rise)
    height = Height(low=low, best=best, high=high) if best > 0 else None
    return Alarm(step=step, predicted=finding.predicted_step, height=height)


def totals(scores: Sequence[RunScore]) -> Totals:
    """Add up the scores of several runs."""
    own = [one for one in scores if one.truth.is_intrinsic]
    recalled = [recall for one in own for recall in one.recalled]
    useful, false = sum(one.useful for one in scores), sum(len(one.false) for one in scores)
    controls = [one for one in scores if one.truth.is_control]
    return Totals(
        spikes=sum(len(one.events) for one in own),
        early=len(recalled),
        false=false,
        precision=useful / max(1, useful + false),
        healthy=1000 * sum(len(one.false) for one in controls) / max(1, sum(one.clean_steps for one in controls)),
        clean=1000 * false / max(1, sum(one.clean_steps for one in scores)),
        leads=(_median([r.lead for r in recalled]), _median([r.lead_to_peak for r in recalled])),
        dates=_share([r.is_date_right for r in recalled]),
        heights=_share([r.is_height_right for r in recalled]),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true", help="try the chosen constants alone")
    options = parser.parse_args()
    runs = read(options.directories)
    families = sorted({run.truth.family for run in runs})
    chosen = {name: float(getattr(owner, name)) for name, owner in OWNERS.items()}
    print(f"{len(runs)} runs of {len(families)} families, {sum(len(run.readings) for run in runs):,} steps\n\n{HEAD}")
    present = [replay(run) for run in runs]
    print(totals(present).row("chosen: " + _text(chosen)))
    for title, cause in (("full batches", "full"), ("mini-batches", "mini")):
        if any(one.truth.batches == cause for one in present):
            print(totals([one for one in present if one.truth.batches == cause]).row(title))
    if not options.quick:
        variants = [chosen | {name: value} for name, values in GRID.items() for value in values]
        tried = [present, *(_with(constants, runs) for constants in variants)]
        for title, worth in CRITERIA.items():
            print(totals(_cross_validated(tried, families, worth)).row(f"cross-validated over families, {title}"))
        for constants, scores in zip(variants, tried[1:], strict=True):
            print(totals(scores).row(_text(dict(constants.items() - chosen.items()))))
        _set(chosen)
    bare = [
        Run(truth=run.truth, readings=tuple(msgspec.structs.replace(r, period_two=None) for r in run.readings))
        for run in runs
    ]
    print(totals([replay(run) for run in bare]).row("without the period-two component"))
    print("\n| family | spikes | early | precision | false per 1,000 event-free steps |\n|---|---|---|---|---|")
    for family in families:
        own = totals([one for one in present if one.truth.family == family])
        print(f"| {family} | {own.spikes} | {own.early} | {own.precision:.2f} | {own.clean:.2f} |")


def _cross_validated(
    tried: Sequence[Sequence[RunScore]], families: Sequence[str], worth: Callable[[Totals], float]
) -> list[RunScore]:
    """Return the scores of each family with the constants that are worth most on the other families."""
    together: list[RunScore] = []
    for family in families:
        best = max(tried, key=lambda one: worth(totals([score for score in one if score.truth.family != family])))
        together += [score for score in best if score.truth.family == family]
    return together


def _with(constants: Constants, runs: Sequence[Run]) -> list[RunScore]:
    _set(constants)
    sys.stderr.write(f"{_text(constants)}\n")
    return [replay(run) for run in runs]


def _set(constants: Constants) -> None:
    for name, value in constants.items():
        setattr(OWNERS[name], name, value)


def _text(constants: Constants) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in constants.items())


def _median(values: Sequence[int]) -> float:
    return float(np.median(values)) if values else float("nan")


def _share(judged: Sequence[bool | None]) -> float:
    known = [one for one in judged if one is not None]
    return sum(known) / len(known) if known else float("nan")


if __name__ == "__main__":
    main()
