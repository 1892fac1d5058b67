"""The verdict about a set-up: pass, an honest gap, or a failure. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from campaigns.set_ups.trial import StepTruth

MAY_MISS: Final = 2
"""Steps at which a statistic of a layer may be absent without a word, such as the one at which an optimizer begins to
overwrite its gradients."""

READINGS: Final = 5
"""Readings of λ_max that a training must have whose curvature is measured."""
LAMBDA_ERROR: Final = 0.02
"""Largest relative error of all readings but the first, which a search space of few vectors gives."""

Result = Literal["pass", "gap", "fail"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one set-up, with its reason."""

    result: Result
    words: str = ""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a run that the server has, keyed by statistic, layer and step; NaN is left out."""

    layers: dict[str, dict[str, dict[int, float]]]
    lr: dict[int, float]
    lambda_max: dict[int, float] = {}
    """Readings of λ_max, keyed by step."""
    losses: dict[int, int]
    """Number of records with a loss, keyed by step."""


def judge(
    truths: Mapping[int, StepTruth],
    stored: Stored,
    *,
    needs: Sequence[str],
    absent: Sequence[str],
    tolerance: float,
    is_same: bool,
    messages: Mapping[str, str],
    says: Sequence[str] = (),
) -> Verdict:
    """Hold what was stored against the truth.

    ``messages`` are the warnings that the SDK gave, keyed by cause, and ``says`` the causes that belong to the set-up.
    """
    if not is_same:
        return Verdict(result="fail", words="the watched training ended with other weights than the bare one")
    if sorted(stored.losses) != sorted(truths) or set(stored.losses.values()) != {1}:
        return Verdict(result="fail", words=f"losses are stored at {stored.losses}, logged were {sorted(truths)}")
    missing: list[str] = []
    for statistic in needs:
        wrong, lacking = _compare(statistic, truths, stored.layers.get(statistic, {}), absent, tolerance)
        if wrong:
            return Verdict(result="fail", words=wrong)
        if lacking:
            missing.append(lacking)
    wrong, lacking = _compare_rates(truths, stored.lr)
    if wrong:
        return Verdict(result="fail", words=wrong)
    if lacking:
        missing.append(lacking)
    wrong, lacking = _compare_lambda_max(truths, stored.lambda_max)
    if wrong:
        return Verdict(result="fail", words=wrong)
    if lacking:
        missing.append(lacking)
    if missing:
        said = "; ".join(messages.values())
        if not messages:
            return Verdict(result="fail", words=f"{', '.join(missing)}, and nothing was said")
        return Verdict(result="gap", words=f"{', '.join(missing)}. The SDK says: {said}")
    needless = [message for cause, message in messages.items() if cause not in says]
    if needless:
        return Verdict(result="fail", words=f"a warning without need: {'; '.join(needless)}")
    if set(says) - set(messages):
        return Verdict(result="fail", words=f"nothing was said about {', '.join(set(says) - set(messages))}")
    return Verdict(result="pass", words="; ".join(messages.values()))


def _compare(
    statistic: str,
    truths: Mapping[int, StepTruth],
    stored: Mapping[str, Mapping[int, float]],
    absent: Sequence[str],
    tolerance: float,
) -> tuple[str, str]:
    """Return what is wrong and what is lacking of one statistic; both are empty if all is right."""
    absences: Counter[str] = Counter()
    for step, truth in sorted(truths.items()):
        true: Mapping[str, float] = getattr(truth, statistic)
        for layer, value in true.items():
            if layer in absent:
                continue
            found = stored.get(layer, {}).get(step)
            if found is None:
                # A layer without a gradient does not move: nothing needs to be known of its step.
                if layer in truth.grad_norm:
                    absences[layer] += 1
            elif not math.isclose(found, value, rel_tol=tolerance, abs_tol=1e-9):
                return f"{statistic} of {layer} is {found:.6g} at step {step}, true is {value:.6g}", ""
    layers = {layer for truth in truths.values() for layer in getattr(truth, statistic)} - set(absent)
    lacking = {layer for layer, count in absences.items() if count > MAY_MISS}
    if not lacking:
        return "", ""
    return "", f"no {statistic}" if lacking >= layers else f"no {statistic} of {', '.join(sorted(lacking))}"


def _compare_rates(truths: Mapping[int, StepTruth], stored: Mapping[int, float]) -> tuple[str, str]:
    for step, truth in truths.items():
        found = stored.get(step)
        if found is not None and truth.lr is None:
            return f"lr is {found:.6g} at step {step}, but the optimizer has none", ""
        if found is not None and truth.lr is not None and not math.isclose(found, truth.lr, rel_tol=1e-6):
            return f"lr is {found:.6g} at step {step}, that of the step was {truth.lr:.6g}", ""
    known = [step for step, truth in truths.items() if truth.lr is not None]
    return "", "no lr" if any(step not in stored for step in known) else ""


def _compare_lambda_max(truths: Mapping[int, StepTruth], stored: Mapping[int, float]) -> tuple[str, str]:
    known = {step: truth.lambda_max for step, truth in truths.items() if truth.lambda_max is not None}
    if not known:
        return "", ""
    for step in sorted(stored)[1:]:
        if not math.isclose(stored[step], known[step], rel_tol=LAMBDA_ERROR):
            return f"lambda_max is {stored[step]:.6g} at step {step}, true is {known[step]:.6g}", ""
    return "", "no lambda_max" if len(stored) < READINGS else ""
