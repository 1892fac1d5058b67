"""Ranges of dates that are calibrated by kind of evidence and judged on families that were left out."""

from __future__ import annotations

import pytest

from benchmarks.fit_ranges import Dated, Kind, best_range, calibrated, coverage, left_out
from server.detectors.calibration import EARLIEST, LATEST


def alarms(ratios: dict[str, list[float]], ahead: int = 20) -> list[Dated]:
    """Return alarms of some families whose onset came after these multiples of the forecast steps."""
    return [
        Dated(family=family, left=round(ratio * ahead), ahead=ahead) for family, own in ratios.items() for ratio in own
    ]


def test_a_range_holds_what_lies_in_it_as_the_detectors_round_it() -> None:
    held = [left for left in range(1, 60) if Dated(family="a", left=left, ahead=11).is_held((0.5, 2.0))]
    assert (held[0], held[-1]) == (5, 23)


def test_the_narrowest_range_that_holds_enough_of_families_that_were_left_out_is_taken() -> None:
    steady = alarms({family: [0.9, 1.0, 1.1, 1.2] for family in "abcde"})
    spread = alarms({family: [0.4, 0.8, 1.6, 2.3] for family in "abcde"})
    late = alarms({**{family: [0.9, 1.0, 1.1] for family in "abcd"}, "e": [4.0] * 9})
    found: dict[Kind, list[Dated]] = {("crossed", True): steady, ("climb", False): spread, ("oscillation", True): late}
    ranges = calibrated(found)
    for kind, own in found.items():
        low, high = ranges[kind][0]
        assert coverage(own, (low, high)) == pytest.approx(coverage(own, best_range(own, high - low)))
    (narrow, held), (wide, _), (_, missed) = (ranges[kind] for kind in found)
    assert narrow[1] - narrow[0] == pytest.approx(1.0)
    assert held == 1.0
    assert wide[1] - wide[0] == pytest.approx(2.0)
    assert missed < 0.8, "a family whose onsets all come late is outside of what the others teach"
    assert left_out(late, 1.0) == pytest.approx(12 / 21)


def test_few_alarms_have_the_range_of_their_sign_in_the_other_reading() -> None:
    few = alarms({"a": [1.0], "b": [2.0]})
    many = alarms({family: [0.9, 1.0, 1.1, 1.2] for family in "abcde"})
    ranges = calibrated({("alternation", True): few, ("alternation", False): many, ("climb", True): few})
    assert ranges["alternation", True][0] == ranges["alternation", False][0]
    assert ranges["climb", True][0] == (EARLIEST, LATEST)
