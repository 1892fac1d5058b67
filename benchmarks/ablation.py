"""Replay recordings without one signal or rule at a time, to show what each adds to the predictions of spikes.

    python -m benchmarks.ablation DIRECTORY … [--quick]

Reads recordings as `spikewatch evaluate` does and replays the predictor with its track record alone, which takes a
fraction of the time; the alarms of the whole server differ by a few, as its alerts close and open anew. A *signal* is
taken from every reading; a *rule* is switched off by its constant. One table for each directory. Slow swells are left
out. Minutes; ``--quick`` leaves out the rules.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

from msgspec.structs import replace

from benchmarks.alternation_fit import HEAD, Run, replay, totals
from server.detectors import height, spike_predictor, track_record
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Reading, Signals
from server.evaluation.recordings import read_recordings
from server.evaluation.truth import truth_of

SIGNALS: Final[Mapping[str, Callable[[Reading], Reading]]] = {
    "the directions (mode_loss and its growth)": lambda one: replace(
        one, mode_loss=None, mode_growth=0.0, mode_alternation=0.0, mode_share=None
    ),
    "the period-two component": lambda one: replace(one, period_two=None, period_two_growth=None),
    "λ_grad": lambda one: replace(one, gradient_stability=None, gradient_above_count=0),
    "the trend of λ_max": lambda one: replace(one, stability_growth=0.0, stability_fit=0.0),
    "all curvature": lambda one: replace(
        one, mode_loss=None, mode_growth=0.0, mode_alternation=0.0, mode_share=None, gradient_stability=None,
        gradient_above_count=0, stability=None, stability_peak=None, stability_growth=0.0, stability_fit=0.0,
        above_steps=0, lambda_max=None,
    ),
    "the growth of ‖g‖": lambda one: replace(one, growth=0.0, growth_fit=0.0, grad_ratio=1.0),
    "Σg²/Σv̂": lambda one: replace(one, decoupling=None, min_decoupling=None, decoupled_steps=0),
    "the expected height": lambda one: replace(one, memory_loss=None),
}  # fmt: skip
"""Readings without one of the signals."""
RULES: Final[Mapping[str, tuple[ModuleType, Mapping[str, float]]]] = {
    "a far date is a watch": (spike_predictor, {"SOON": 400}),
    "the beginning of a run is a watch": (spike_predictor, {"FALLING": 0}),
    "an oscillation grows as its ratio implies": (spike_predictor, {"PART": 0.0}),
    "a huge ratio is not believed": (spike_predictor, {"UNBELIEVED": math.inf}),
    "a ripple is a watch": (height, {"RIPPLE": 0.0, "MARGIN": 0.0}),
    "the aftermath of a spike is silent": (spike_predictor, {"AFTERMATH": 0}),
    "false claims pause the next ones": (track_record, {"TOLERATED": 1_000}),
}
"""Constants that switch off one of the rules each."""


def read(directory: Path) -> list[Run]:
    """Return the runs of a directory that are no slow swells, with curvature."""
    runs = []
    for recording in read_recordings(directory):
        if recording.is_swell:
            continue
        signals = Signals()
        readings = tuple(signals.update(sample, sums_of(sample)) for sample in recording.samples)
        runs.append(Run(truth=truth_of(recording), readings=readings))
    return runs


def without(part: Callable[[Reading], Reading], runs: list[Run]) -> list[Run]:
    """Return the runs without a signal.

    >>> bare = without(SIGNALS["λ_grad"], [])
    """
    return [Run(truth=run.truth, readings=tuple(map(part, run.readings))) for run in runs]


def row(title: str, runs: list[Run]) -> str:
    """Return the line of the table for these runs."""
    return totals([replay(run) for run in runs]).row(title)


def row_without_rule(title: str, runs: list[Run]) -> str:
    """Return the line of the table without a rule, which is in force again afterwards."""
    owner, constants = RULES[title]
    before = {name: getattr(owner, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(owner, name, value)
        return row(f"without the rule that {title}", runs)
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--quick", action="store_true", help="leave out the rules")
    options = parser.parse_args()
    for directory in options.directories:
        runs = read(directory)
        print(f"\n{directory.name}: {len(runs)} runs\n\n{HEAD}\n{row('everything', runs)}", flush=True)
        for title, part in SIGNALS.items():
            print(row(f"without {title}", without(part, runs)), flush=True)
        for title in () if options.quick else RULES:
            print(row_without_rule(title, runs), flush=True)


if __name__ == "__main__":
    main()
