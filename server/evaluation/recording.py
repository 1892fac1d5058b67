"""A recorded run: the input of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.models import Sample

CONTROL: Final = "none"
"""Cause of a healthy control."""
FULL_BATCH: Final = "full"
"""Mark of a run whose every step reads all of its data."""
MINI_BATCH: Final = "mini"
"""Mark of a run whose steps read different batches."""
CURVATURE: Final = (
    *("lambda_max", "lambda_max_error", "lambda_max_age", "lambda_grad", "lambda_step", "critical_sharpness"),
    *("mode_loss", "mode_growth", "mode_alternation", "mode_share", "curvature_share"),
)
"""Scalars that exist only where training passes a closure."""
BY_CURVATURE: Final = 1.0
"""Value of `stability_ratio_source` for a ratio that was measured with a closure."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One run: its samples, and what is known about it."""

    name: str
    samples: Sequence[Sample]
    cause: str
    """Cause that the run was built to show, `CONTROL` for a healthy one, "" if unknown."""
    fault_steps: tuple[int, ...] = ()
    """Steps at which a fault was injected."""
    family: str = ""
    """Task and architecture of the run, "" if unknown; scores are also added up over a family."""
    is_swell: bool = False
    """Whether its spikes are slow swells in a wide band of noise, whose labels are uncertain; they are scored apart."""

    batches: str = ""
    """`FULL_BATCH`, `MINI_BATCH`, or "" if unknown; scores are also added up over each."""

    def without_curvature(self) -> Recording:
        """Return the recording as it would be if training had passed no closure."""
        return replace(self, samples=tuple(map(_without_curvature, self.samples)))

    @property
    def losses(self) -> NDArray[np.float64]:
        """Losses of all samples, shape (samples,), NaN where a sample has none."""
        return np.array([sample.scalars.get("loss", np.nan) for sample in self.samples], dtype=np.float64)


def _without_curvature(sample: Sample) -> Sample:
    hidden = set(CURVATURE)
    if sample.scalars.get("stability_ratio_source", BY_CURVATURE) == BY_CURVATURE:
        hidden |= {"stability_ratio", "stability_ratio_source"}
    scalars = {name: value for name, value in sample.scalars.items() if name not in hidden}
    return msgspec.structs.replace(sample, scalars=scalars)
