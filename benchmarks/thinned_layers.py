"""Measures what `every="auto"` costs in predicted spikes, on recordings that are replayed as the SDK would thin them.

    python -m benchmarks.thinned_layers DIRECTORY [--dearness 0.02 0.08 0.3]

Each recorded run is replayed step by step through the SDK's own rhythm and trigger: a step that the rhythm leaves out
loses its layer statistics and the gradient norm that the SDK derives from them; everything else stays. The findings of
the detectors stand for the alerts that reach the training. ``--dearness`` is the cost of a measurement in units of a
training step. The scores are those of `spikewatch evaluate`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from client_sdk.watch.rhythm import Rhythm
from client_sdk.watch.trigger import Trigger
from server.detectors.detector_suite import DetectorSuite
from server.evaluation.alarms import replay
from server.evaluation.measures import MEASURES, measure
from server.evaluation.recording import Recording
from server.evaluation.recordings import read_recordings
from server.evaluation.scores import RunScore, score
from server.evaluation.truth import truth_of
from server.models import Sample


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """A recording as the SDK would have sent it."""

    recording: Recording
    measured: float
    """Share of the steps that have layer statistics."""
    stirred: int
    """Number of times that the rhythm became dense."""


def thin(recording: Recording, dearness: float, *, keeps_norm: bool) -> Thinned:
    """Replay a recording through the rhythm; with ``keeps_norm`` the user logs the gradient norm at every step."""
    rhythm = Rhythm(every="auto", histogram_every=50)
    trigger = Trigger()
    suite = DetectorSuite()
    samples: list[Sample] = []
    known: set[tuple[str, str]] = set()
    stirred = measured = 0
    for sample in recording.samples:
        is_due = rhythm.begin_step()
        rhythm.end_step()
        rhythm.observe_step_time(1.0)
        thinned = sample
        if is_due:
            rhythm.note_measured(histograms=False)
            rhythm.observe_cost(dearness)
            measured += 1
        else:
            kept = {name: value for name, value in sample.scalars.items() if keeps_norm or name != "grad_norm"}
            thinned = msgspec.structs.replace(sample, scalars=kept, layout=None, block=None)
        rhythm.note_logged()
        samples.append(thinned)
        was_dense = rhythm.is_dense
        if trigger.observe(thinned.scalars) | (is_due and trigger.observe_statistics(_totals(sample))):
            rhythm.stir()
        findings = {(finding.kind.value, finding.level.value) for finding in suite.update(thinned).findings}
        if findings - known:
            rhythm.stir()
        known = findings
        stirred += rhythm.is_dense and not was_dense
    return Thinned(
        recording=Recording(
            name=recording.name, samples=samples, cause=recording.cause, fault_steps=recording.fault_steps
        ),
        measured=measured / len(samples),
        stirred=stirred,
    )


def _totals(sample: Sample) -> dict[str, float]:
    norms, second = sample.statistic("grad_norm"), sample.statistic("v_rms")
    if norms is None or sample.layout is None:
        return {"grad_norm": math.nan, "decoupling": math.nan}
    square = float(np.nansum(np.square(norms.astype(np.float64))))
    if second is None:
        return {"grad_norm": math.sqrt(square), "decoupling": math.nan}
    memory = float(np.nansum(np.square(second.astype(np.float64)) * np.array(sample.layout.sizes)))
    return {"grad_norm": math.sqrt(square), "decoupling": square / memory if memory > 0 else math.nan}


def _row(name: str, runs: Sequence[RunScore], measured: Sequence[float], healthy: Sequence[float]) -> str:
    early = measure(MEASURES["early"], runs)
    numbers = {
        key: measure(MEASURES[key], runs).value or 0.0 for key in ("early", "precision", "healthy", "lead", "peak")
    }
    return (
        f"{name:34} {early.count * numbers['early']:4.0f}/{early.count:<4} {numbers['precision']:9.2f} "
        f"{numbers['healthy']:13.2f} {numbers['lead']:6.0f} {numbers['peak']:6.0f} "
        f"{100 * float(np.mean(measured)):9.0f} % {100 * float(np.mean(healthy)):8.0f} %"
    )


def _score(recording: Recording) -> RunScore:
    return score(truth_of(recording), replay(recording))


def _recordings(directory: Path) -> Iterator[Recording]:
    yield from read_recordings(directory)


def main() -> None:
    """Print one row for every step measured and one for each dearness."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dearness", type=float, nargs="*", default=[0.02, 0.08, 0.16, 0.3])
    options = parser.parse_args()
    recordings = list(_recordings(options.directory))
    print(
        f"{'':34} {'early':>9} {'precision':>9} {'false / 1,000':>13} {'lead':>6} {'peak':>6} "
        f"{'measured':>11} {'healthy':>10}"
    )
    whole = [_score(recording) for recording in recordings]
    print(_row("every=1", whole, [1.0], [1.0]), flush=True)
    for dearness in options.dearness:
        for keeps_norm in (True, False):
            found = [thin(recording, dearness, keeps_norm=keeps_norm) for recording in recordings]
            runs = [_score(one.recording) for one in found]
            name = f"auto, cost {dearness:.2f} step, {'norm logged' if keeps_norm else 'no norm logged'}"
            healthy = [one.measured for one in found if one.recording.cause == "none"]
            print(_row(name, runs, [one.measured for one in found], healthy), flush=True)


if __name__ == "__main__":
    main()
