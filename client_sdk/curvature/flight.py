"""A measurement of curvature between its start and the arrival of its values."""

from __future__ import annotations

from dataclasses import dataclass

from client_sdk.curvature.reading import CurvatureCopy
from client_sdk.curvature.schedule import Choice
from client_sdk.curvature.tracking import Aim


@dataclass(frozen=True, kw_only=True)
class Flight:
    """A measurement whose values have not reached the host."""

    step: int
    choice: Choice
    aim: Aim | None
    is_judged: bool = False
    """Whether the tracking has taken in the values already."""
    copy: CurvatureCopy
