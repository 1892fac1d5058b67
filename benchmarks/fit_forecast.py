"""Fit the constants of the forecasts to recordings, judge them on families they were not fitted to, and write them.

    python -m benchmarks.fit_forecast DIRECTORY … [--write]

For each sign of a build-up before a spike of Adam's mechanism: what the detectors said then, and what came. Prints

* the date with and without each of its parts, by the time that was left;
* the range of the date: among the ranges whose width is at most 1.5 × the forecast steps, the one that holds most
  onsets at the first sign of each build-up, and its coverage on each family with the range of the others;
* the height: its constants, their 90 % intervals over runs, and the share within a factor of three on other families.

``--write`` stores the constants in `server/detectors/calibration.py`, where the detectors read them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from server.detectors.context import Context
from server.detectors.forecast import forecast
from server.detectors.height import HeightRecord
from server.detectors.jump import JumpDetector
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Reading, Signals
from server.detectors.spike_predictor import AFTERMATH, ALARMS, HOLD, SETTLING, Sign, judge
from server.evaluation.labels import label
from server.evaluation.recording import Recording
from server.evaluation.recordings import read_recordings
from server.evaluation.truth import EARLY, INTRINSIC

TABLE = Path(__file__).parents[1] / "server" / "detectors" / "calibration.py"
WIDTH = 1.5
"""Largest width of a range in units of the forecast steps."""
DRAWS = 200
"""Number of draws of runs behind an interval."""
LEFT = ((1, 3), (4, 7), (8, 15), (16, 25), (26, 50), (51, 100))
"""Numbers of steps that were left, by which dates are compared."""
Numbers = NDArray[np.float64]
PARTS: dict[str, Callable[[Reading], Reading]] = {
    "all": lambda reading: reading,
    "no trend": lambda reading: replace(reading, stability_growth=0.0),
    "no direction": lambda reading: replace(reading, mode_loss=None),
    "no λ_max": lambda reading: replace(reading, stability=None, stability_growth=0.0),
}
"""Readings without one part of what the date rests on."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sign before a spike: its forecast, and the spike that came."""

    run: str
    family: str
    is_first: bool
    """Whether it is the first sign of its build-up."""
    left: int
    """Number of steps until the onset."""
    ahead: int
    """Forecast number of steps."""
    dates: dict[str, int | None] = field(default_factory=dict)
    """Forecast number of steps without parts of the evidence."""
    excess: float | None
    """Logarithm of (height that came / expected one without the run's own correction); None if unknown."""
    is_curved: bool
    """Whether λ_max was measured."""


def claims(recording: Recording) -> Iterator[Claim]:
    """Yield each sign that comes at most 100 steps before an onset and is no ripple."""
    signals, jump, height = Signals(), JumpDetector(), HeightRecord()
    events, _ = label(recording.losses)
    steps = [sample.step for sample in recording.samples]
    last, quiet = -EARLY, 0
    for seen, sample in enumerate(recording.samples):
        reading, context = signals.update(sample, sums_of(sample)), Context()
        jump.update(reading, context)
        height.update(reading, is_jumping=context.is_jumping)
        step = reading.step
        if context.is_jumping:
            quiet, last = step + AFTERMATH, -EARLY
        if seen <= SETTLING or step < quiet:
            continue
        rise = height.onset_rise()
        evidence = judge(reading, 0.0, rise)
        if evidence.sign not in ALARMS or evidence.sign is Sign.RESET or evidence.predicted is None:
            continue
        ahead = evidence.predicted.best - step
        height.note_state(reading, ahead)
        is_first, last = step - last > HOLD, step
        event = next((one for one in events if step < steps[one.onset] <= step + EARLY), None)
        if event is None or height.is_ripple:
            continue
        is_known = height.memory is not None and math.isfinite(event.height) and event.height > 0
        yield Claim(
            run=recording.name,
            family=recording.family,
            is_first=is_first,
            left=steps[event.onset] - step,
            ahead=ahead,
            dates={name: _ahead(part(reading), rise) for name, part in PARTS.items()}
            | {"no loss": _ahead(reading, None)},
            excess=math.log(event.height) - (height.memory or 0.0) - height.usual if is_known else None,
            is_curved=reading.stability is not None,
        )


def _ahead(reading: Reading, rise: float | None) -> int | None:
    predicted = forecast(reading, rise)
    return None if predicted is None else predicted.best - reading.step


def best_range(ratios: Numbers) -> tuple[float, float]:
    """Return the range of width 1.5 that holds most of the ratios of true to forecast steps.

    >>> best_range(np.array([0.8, 1.0, 1.2, 2.0, 9.0]))
    (0.62, 2.12)
    """
    lows = np.arange(0.3, 0.8, 0.05)
    held = [np.mean((ratios >= low) & (ratios <= low + WIDTH)) for low in lows]
    low = float(np.mean(lows[np.asarray(held) == max(held)]))
    return round(low, 2), round(low + WIDTH, 2)


def over_families(found: Sequence[Claim]) -> list[tuple[str, float, int]]:
    """Return for each family the share of onsets in the range of the other families, and the number of build-ups."""
    rows = []
    for family in sorted({one.family for one in found}):
        own = _ratios([one for one in found if one.family == family])
        others = _ratios([one for one in found if one.family != family])
        if len(others):
            low, high = best_range(others)
            rows.append((family, float(np.mean((own >= low) & (own <= high))), len(own)))
    return rows


def _ratios(found: Sequence[Claim]) -> Numbers:
    return np.array([one.left / one.ahead for one in found])


def interval(found: Sequence[Claim], statistic: Callable[[Sequence[Claim]], float]) -> tuple[float, float]:
    """Return the 90 % interval of a statistic over draws of runs with a fixed seed."""
    generator = np.random.default_rng(0)
    runs = sorted({one.run for one in found})
    by_run = {run: [one for one in found if one.run == run] for run in runs}
    values = [
        statistic([one for run in generator.choice(runs, len(runs)) for one in by_run[run]]) for _ in range(DRAWS)
    ]
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


def median_excess(found: Sequence[Claim]) -> float:
    """Return the median factor between the height that came and the expected one."""
    return float(np.exp(np.median([one.excess for one in found if one.excess is not None])))


def within_three(found: Sequence[Claim]) -> float:
    """Return the share of heights within a factor of three, each corrected by the median of the other families."""
    hits = []
    for family in {one.family for one in found}:
        others = [one for one in found if one.family != family]
        if others:
            centre = math.log(median_excess(others))
            own = [one.excess for one in found if one.family == family and one.excess is not None]
            hits += [abs(excess - centre) < math.log(3.0) for excess in own]
    return float(np.mean(hits)) if hits else math.nan


def report(found: Sequence[Claim]) -> Iterator[str]:
    """Yield the lines of the report."""
    names = [*PARTS, "no loss"]
    yield "| steps left | signs | " + " | ".join(f"{name}: median, within ×2" for name in names) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for fewest, most in LEFT:
        own = [one for one in found if fewest <= one.left <= most]
        cells = []
        for name in names:
            ratios = np.array([ahead / one.left for one in own if (ahead := one.dates[name]) is not None])
            within = np.mean((ratios >= 0.5) & (ratios <= 2.0)) if len(ratios) else math.nan
            cells.append(f"{np.median(ratios):.2f}, {within:.2f}" if len(ratios) else "–")
        yield f"| {fewest} to {most} | {len(own)} | " + " | ".join(cells) + " |"
    first = [one for one in found if one.is_first]
    low, high = best_range(_ratios(first))
    rows = over_families(first)
    total = sum(share * count for _, share, count in rows) / max(1, sum(count for _, _, count in rows))
    yield f"\nrange {low} to {high} of the forecast steps; on families left out it holds {total:.2f} of the onsets:"
    yield ", ".join(f"{family} {share:.2f} ({count})" for family, share, count in rows)
    for is_curved, name in ((True, "REACH"), (False, "FACTOR")):
        own = [one for one in first if one.is_curved is is_curved and one.excess is not None]
        if len({one.run for one in own}) > 1:
            lower, upper = interval(own, median_excess)
            yield (
                f"{name} × {median_excess(own):.2f} (90 % {lower:.2f} to {upper:.2f}; {len(own)} build-ups); "
                f"within a factor of three on families left out: {within_three(own):.2f}"
            )


def write(found: Sequence[Claim]) -> None:
    """Store the range of the date in the table that the detectors read."""
    low, high = best_range(_ratios([one for one in found if one.is_first]))
    lines = TABLE.read_text().splitlines()
    fitted = {"EARLIEST": low, "LATEST": high}
    for at, line in enumerate(lines):
        name = line.partition(":")[0]
        if name in fitted:
            lines[at] = f"{name}: Final = {fitted[name]}"
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Read the recordings, print the report, and store the constants if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help=f"store the constants in {TABLE.name}")
    options = parser.parse_args()
    recordings = (one for directory in options.directory for one in read_recordings(directory))
    usable = (one for one in recordings if one.cause in INTRINSIC and not one.is_swell)
    found = [claim for recording in usable for claim in claims(recording)]
    if not found:
        parser.error("the recordings hold no sign before a spike; record more (python -m benchmarks.record_cases)")
    sys.stdout.write("\n".join(report(found)) + "\n")
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
