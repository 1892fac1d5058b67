"""The tables of the study. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from campaigns.guard_study.trial import Outcome
from server.evaluation.recording import CONTROL

TENTH = 0.1
"""Height below which a spike counts as cut, in units of the median height of the unguarded run's spikes."""
Pair = tuple[Outcome, Outcome]
"""An unguarded training and the same one with a remedy."""


def remedy_table(outcomes: Sequence[Outcome], labels: Mapping[str, str]) -> list[str]:
    """Return the rows that compare the remedies on the cases with spikes."""
    lines = [
        "| remedy | spikes without → with | avoided or cut tenfold | steps touched | final loss | best loss "
        "| controls acted on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, text in labels.items():
        pairs = _pairs(outcomes, name)
        spiking = [pair for pair in pairs if pair[0].heights and pair[0].cause != CONTROL]
        controls = [pair for pair in pairs if pair[0].cause == CONTROL and not pair[0].heights]
        if not spiking:
            continue
        before, after = (sum(len(pair[at].heights) for pair in spiking) for at in (0, 1))
        left = sum(map(_left, spiking))
        touched = sum(pair[1].touched for pair in spiking) / sum(pair[1].steps for pair in spiking)
        acted = sum(1 for pair in controls if pair[1].acts)
        avoided = max(0, before - left)
        lines.append(
            f"| {text} | {before} → {after} | {avoided} of {before} ({avoided / before:.0%}) "
            f"| {touched:.1%} | × {_median_ratio(spiking, lambda one: one.final)} "
            f"| × {_median_ratio(spiking, lambda one: one.best)} | {acted} of {len(controls)} |"
        )
    return lines


def case_table(outcomes: Sequence[Outcome], remedies: Sequence[str]) -> list[str]:
    """Return the rows of single trainings: spikes and final loss with each remedy."""
    lines = [
        "| training | " + " | ".join(remedies) + " |",
        "|---" * (len(remedies) + 1) + "|",
    ]
    keys = dict.fromkeys((one.case, one.seed) for one in outcomes)
    for case, seed in keys:
        cells = []
        for name in remedies:
            found = next((one for one in outcomes if (one.case, one.seed, one.remedy) == (case, seed, name)), None)
            if found is None:
                cells.append("")
                continue
            acts = f", {found.acts} acts" if found.acts else ""
            cells.append(f"{len(found.heights)} spikes{acts}, {found.final:.1e}")
        lines.append(f"| {case}, seed {seed} | " + " | ".join(cells) + " |")
    return lines


def differing(outcomes: Sequence[Outcome], name: str) -> list[str]:
    """Return the trainings that a remedy without an act has changed by a bit, or that advice has."""
    return [
        f"{one.case}, seed {one.seed}"
        for bare, one in _pairs(outcomes, name)
        if (name == "advise" or not one.acts) and one.fingerprint != bare.fingerprint
    ]


def time_ratio(outcomes: Sequence[Outcome], name: str) -> float:
    """Return the median processor time of the trainings with a remedy over that of the unguarded ones."""
    return median([one.seconds / bare.seconds for bare, one in _pairs(outcomes, name)] or [math.nan])


def _pairs(outcomes: Sequence[Outcome], name: str) -> list[Pair]:
    bare = {(one.case, one.seed): one for one in outcomes if one.remedy == "none"}
    return [(bare[one.case, one.seed], one) for one in outcomes if one.remedy == name and (one.case, one.seed) in bare]


def _left(pair: Pair) -> int:
    usual = median(pair[0].heights)
    return sum(1 for height in pair[1].heights if not height < TENTH * usual)


def _median_ratio(pairs: Sequence[Pair], value: Callable[[Outcome], float]) -> str:
    ratios = [value(after) / value(before) for before, after in pairs if value(before) > 0]
    return f"{median(ratios):.2g}" if ratios else "–"
