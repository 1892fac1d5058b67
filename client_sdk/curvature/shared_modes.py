"""Readings of the unstable directions of a model that is divided among ranks.

Each rank follows its part of the amplitudes, and the ranks add them within the sum of the layer statistics. There are
therefore readings of measured steps, and of growth where these follow one another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client_sdk.curvature.mode_reading import WINDOW, mode_scalars
from client_sdk.distributed import SharedStep
from client_sdk.measurement import HostCopy


@dataclass(frozen=True, kw_only=True)
class FollowedStep:
    """One step of which all ranks have followed their parts."""

    step: int
    """Step of the optimizer."""
    shared: SharedStep
    own: HostCopy
    """Row of the `UnstableDirections` of this rank; the eigenvalues at its end are the same on all ranks."""

    def row(self) -> NDArray[np.float64] | None:
        """Return the row of all ranks together, after waiting for it if necessary; None if one rank had none."""
        verdict = self.shared.verdict
        if verdict is None or verdict.modes is None:
            return None
        row = self.own.array().copy()
        count = (len(row) - 1) // 2
        row[: 1 + count] = verdict.modes[: 1 + count]
        return row


class SharedModeCopy:
    """Amplitudes of the last steps on their way from all ranks; has the methods of `ModeCopy`."""

    def __init__(self, steps: Sequence[FollowedStep]) -> None:
        """Read the last of ``steps``, and its growth over those right before it."""
        self._steps = tuple(steps)

    def ready(self) -> bool:
        """Return whether all values have reached the host. Never synchronises a device."""
        return all(step.shared.ready() and step.own.ready() for step in self._steps)

    def scalars(self) -> dict[str, float]:
        """Return the scalars of the last step (see `mode_reading.mode_scalars`); none if a rank had no amplitudes."""
        rows: list[NDArray[np.float64]] = []
        for step in reversed(self._steps):
            row = step.row()
            if row is None or (rows and len(row) != len(rows[-1])):
                break
            rows.append(row)
        return mode_scalars(np.stack(rows[::-1])) if rows else {}


class SharedModes:
    """The last steps that were followed one after the other. Used on the training thread."""

    def __init__(self) -> None:
        self._steps: deque[FollowedStep] = deque(maxlen=WINDOW)

    def take(self, step: int, shared: SharedStep, own: HostCopy) -> SharedModeCopy:
        """Take in this rank's row of a ``step`` whose sum is under way."""
        if self._steps and self._steps[-1].step != step - 1:
            self._steps.clear()
        self._steps.append(FollowedStep(step=step, shared=shared, own=own))
        return SharedModeCopy(self._steps)
