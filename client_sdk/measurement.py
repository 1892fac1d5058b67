"""What an instrument measured at one step, on its way from `watch` to `Run`: the seam that keeps torch out of `Run`.

Owns the two types between the rooms; does no measuring and no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import Histograms, Layout


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Host values of one step."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    block: NDArray[np.float32] | None = None
    """layers × statistics, as the instrument's layout names them."""
    histograms: tuple[Histograms, ...] = ()


class HostCopy(Protocol):
    """Values on their way from a device to the host; `client_sdk.host` has the implementations."""

    def ready(self) -> bool:
        """Return whether `array` returns without waiting. Never synchronises a device."""
        ...

    def array(self) -> NDArray[np.float64]:
        """Return the values as float64, after waiting for the copy if it is still under way."""
        ...


class Pending(Protocol):
    """A measurement whose copy from the device may still be under way."""

    def ready(self) -> bool:
        """True when `result` will not wait. Never synchronises a device."""
        ...

    def result(self) -> Measurement:
        """The values; waits for the copy if it must. Called once, when `ready`: by the training thread inside `log`, or
        by the sender thread."""
        ...


class Instrument(Protocol):
    """Something attached to a `Run` that measures what `log` is not told. `watch` makes one."""

    layout: Layout
    """Its `id` is set by `Run.attach`, which returns the numbered copy."""

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> Pending | None:
        """Called on the training thread inside `log`. Must not raise, block, or synchronise a device.

        ``metrics`` are the user's values, tensors included. None when there is nothing new at this step.
        """
        ...
