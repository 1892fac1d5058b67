"""A recorded run: the input of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.models import Sample

CONTROL: Final = "none"
"""Cause of a healthy control."""


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

    @property
    def losses(self) -> NDArray[np.float64]:
        """Losses of all samples, shape (samples,), NaN where a sample has none."""
        return np.array([sample.scalars.get("loss", np.nan) for sample in self.samples], dtype=np.float64)
