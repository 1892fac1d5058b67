"""Calibrate the range of a forecast date for each kind of evidence, and judge it on families that were left out.

    python -m benchmarks.fit_ranges DIRECTORY … [--write] [--families NAME …]

A kind of evidence is a sign of the predictor, with λ_max measured or without. Of each spike of a run that arose by
itself, the first early alarm counts: the steps that were left when people were told, over those that were forecast.
For each kind, the range is the narrowest of `WIDTHS` for which ranges that were fitted without a family hold at least
0.8 of the onsets of that family, over all families (a conformal range, split by family instead of by run because the
spikes of one family resemble each other). Kinds of few alarms or families have the range of their sign in the other
reading, or else the one that all dates share.

``--families`` reads only runs of these families; ``--write`` stores the ranges in `server/detectors/calibration.py`.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.alternation_fit import Run, alarms
from server.detectors.calibration import EARLIEST, LATEST
from server.detectors.layer_sums import sums_of
from server.detectors.signals import Signals
from server.evaluation.alarms import Replayed
from server.evaluation.recording import Recording
from server.evaluation.recordings import read_recordings
from server.evaluation.scores import score
from server.evaluation.truth import truth_of

TABLE: Final = Path(__file__).parents[1] / "server" / "detectors" / "calibration.py"
COVERAGE: Final = 0.8
"""Share of the onsets of left-out families that a range must hold."""
WIDTHS: Final = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Widths of ranges in units of the forecast steps, the narrowest first; a wider range says little."""
LOWS: Final = np.arange(0.1, 1.01, 0.05)
"""Begins of ranges that are tried."""
FEWEST, FEWEST_FAMILIES = 10, 5
"""Least number of alarms and of families behind a range of its own."""
SLACK: Final = 1
"""Number of steps that the detectors add to the late end."""
Range = tuple[float, float]
Kind = tuple[str, bool]
"""A sign, and whether λ_max was measured."""


@dataclass(frozen=True, kw_only=True)
class Dated:
    """The first early alarm of a spike that had a date."""

    family: str
    left: int
    """Steps to the onset."""
    ahead: int
    """Steps that were forecast."""

    def is_held(self, by: Range) -> bool:
        """Return whether the onset lies in a range, as the detectors round it."""
        low, high = by
        return math.floor(low * self.ahead) <= self.left <= math.ceil(high * self.ahead) + SLACK


def dated(recordings: Iterable[Recording]) -> dict[Kind, list[Dated]]:
    """Return the first early alarms of all recordings by their kind of evidence, read with and without curvature."""
    found: dict[Kind, list[Dated]] = defaultdict(list)
    for recording in recordings:
        for is_curved, one in ((True, recording), (False, recording.without_curvature())):
            truth, signals = truth_of(one), Signals()
            if not truth.is_intrinsic or truth.is_swell:
                continue
            run = Run(truth=truth, readings=tuple(signals.update(sample, sums_of(sample)) for sample in one.samples))
            told = alarms(run)
            for recall in score(truth, Replayed(alarms=tuple(told))).recalled:
                band, sign = recall.alarm.predicted, told[recall.alarm]
                if band is not None:
                    ahead = max(1, band.best - recall.alarm.step)
                    found[sign, is_curved].append(Dated(family=truth.family, left=recall.lead, ahead=ahead))
    return found


def coverage(found: Sequence[Dated], by: Range) -> float:
    """Return the share of onsets that a range holds.

    >>> coverage([Dated(family="a", left=10, ahead=10), Dated(family="a", left=50, ahead=10)], (0.5, 2.0))
    0.5
    """
    return float(np.mean([one.is_held(by) for one in found]))


def best_range(found: Sequence[Dated], width: float) -> Range:
    """Return the range of a width that holds most onsets; the middle one if there are several."""
    held = [coverage(found, (low, low + width)) for low in LOWS]
    low = float(np.mean(LOWS[np.array(held) == max(held)]))
    return round(low, 2), round(low + width, 2)


def left_out(found: Sequence[Dated], width: float) -> float:
    """Return the share of onsets that ranges of a width hold, each fitted without the family that it is judged on."""
    held = [
        one.is_held(best_range([other for other in found if other.family != family], width))
        for family in sorted({one.family for one in found})
        for one in found
        if one.family == family
    ]
    return float(np.mean(held))


def calibrated(found: Mapping[Kind, Sequence[Dated]]) -> dict[Kind, tuple[Range, float]]:
    """Return the range of each kind, and the share of onsets of left-out families that such ranges hold."""
    ranges: dict[Kind, tuple[Range, float]] = {}
    few = []
    for kind, own in sorted(found.items()):
        if len(own) < FEWEST or len({one.family for one in own}) < FEWEST_FAMILIES:
            few.append(kind)
            continue
        shares = [(width, left_out(own, width)) for width in WIDTHS]
        width, share = next((one for one in shares if one[1] >= COVERAGE), max(shares, key=lambda one: one[1]))
        ranges[kind] = best_range(own, width), share
    for sign, is_curved in few:
        other, _ = ranges.get((sign, not is_curved), ((EARLIEST, LATEST), 0.0))
        ranges[sign, is_curved] = other, coverage(found[sign, is_curved], other)
    return dict(sorted(ranges.items()))


def table(found: Mapping[Kind, Sequence[Dated]]) -> list[str]:
    """Return the lines of the table."""
    rows = [
        "| evidence | λ_max | alarms | families | range | onsets of left-out families inside | inside 0.5 to 2.0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for (sign, is_curved), ((low, high), share) in calibrated(found).items():
        own = found[sign, is_curved]
        families = len({one.family for one in own})
        shared = coverage(own, (EARLIEST, LATEST))
        measured = "measured" if is_curved else "–"
        rows.append(f"| {sign} | {measured} | {len(own)} | {families} | {low} to {high} | {share:.2f} | {shared:.2f} |")
    return rows


def write(found: Mapping[Kind, Sequence[Dated]]) -> None:
    """Store the ranges in the table that the detectors read."""
    before, _, rest = TABLE.read_text().partition("RANGES: Final")
    after = rest.partition("\n}\n")[2]
    lines = [
        f'    ("{sign}", {is_curved}): ({low}, {high}),'
        for (sign, is_curved), ((low, high), _) in calibrated(found).items()
        if (low, high) != (EARLIEST, LATEST)
    ]
    body = "\n".join(lines)
    TABLE.write_text(f"{before}RANGES: Final[Mapping[tuple[str, bool], tuple[float, float]]] = {{\n{body}\n}}\n{after}")


def main() -> None:
    """Print the table, and store the ranges if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--families", nargs="+", metavar="NAME", help="read only runs of these families")
    parser.add_argument("--write", action="store_true", help=f"store the ranges in {TABLE.name}")
    options = parser.parse_args()
    recordings = (one for directory in options.directories for one in read_recordings(directory))
    wanted = (one for one in recordings if not options.families or one.family in options.families)
    found = dated(wanted)
    if not found:
        parser.error("the recordings hold no early alarm with a date")
    print("\n".join(table(found)))
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
