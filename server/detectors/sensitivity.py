"""The sensitivity of the predictions: the one number by which people ask for fewer or for more warnings.

Owns what it does to thresholds. The sensitivity s divides the expected rise from which a predicted spike is worth a
warning (`height.RIPPLE` at the usual sensitivity of 1). With fewer alerts s is 0.6, so that only a rise by the whole
level of the loss is a warning; with more alerts s is 6, so that a rise by a tenth of it is. A prediction that is no
warning is a watch. What is known about the run's earlier predictions (`track_record`) holds at every sensitivity, and
so do the signs that a prediction needs. Events that have happened are reported at every sensitivity alike.

>>> [f"{least_rise(factor_of(step)):.1f}" for step in (Sensitivity.FEWER, Sensitivity.MORE)]
['1.0', '0.1']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from client_sdk.vocabulary import Sensitivity
from server.detectors.height import RIPPLE
from server.models import AlertKind, AlertLevel, Finding

USUAL: Final = 1.0
"""Sensitivity of a live run."""
FACTORS: Final[Mapping[Sensitivity, float]] = {Sensitivity.FEWER: 0.6, Sensitivity.USUAL: USUAL, Sensitivity.MORE: 6.0}
"""Number of each step of the knob."""
NO_BUILD_UP: Final = ("", "none", "approach")
"""Signs that are a watch at every sensitivity, because nothing grows yet."""


def factor_of(step: Sensitivity) -> float:
    """Return the number of a step of the knob."""
    return FACTORS[step]


def least_rise(sensitivity: float) -> float:
    """Return the expected rise, relative to the loss, from which a predicted spike is worth a warning."""
    return RIPPLE / sensitivity


def weighed(finding: Finding, sensitivity: float) -> Finding:
    """Return a finding at the level that it has at this sensitivity; at the usual one nothing changes."""
    if sensitivity == USUAL or finding.kind is not AlertKind.SPIKE_PREDICTED:
        return finding
    rise = finding.evidence.get("expected_rise")
    if not isinstance(rise, float):
        return finding
    is_worth_it = rise >= least_rise(sensitivity)
    if sensitivity < USUAL and finding.level is not AlertLevel.WATCH and not is_worth_it:
        title = finding.title.replace("predicted", "possible")
        return replace(finding, level=AlertLevel.WATCH, title=title)
    is_held = finding.level is AlertLevel.WATCH and finding.evidence.get("sign", "") not in NO_BUILD_UP
    is_trusted = not finding.evidence.get("false_alarms_before")
    if sensitivity > USUAL and is_held and is_worth_it and is_trusted:
        title = finding.title.replace("possible", "predicted")
        return replace(finding, level=AlertLevel.WARNING, title=title)
    return finding
