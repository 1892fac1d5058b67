"""Measurements on their way from `watch` to `Run`, and the interfaces between them, which keep torch out of `Run`.

Owns types only; no measuring and no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import Audit, Histograms, Layout
from client_sdk.run_status import WatchStatus


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Values of one step in host memory."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    """Measured scalars by name."""
    block: NDArray[np.float32] | None = None
    """Block of layer statistics, shape (layers, statistics), with the rows and columns of the instrument's layout."""
    histograms: tuple[Histograms, ...] = ()
    """Histograms of the layers, one for each quantity."""


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
        """Return whether `result` returns without waiting. Never synchronises a device."""
        ...

    def result(self) -> Measurement:
        """Return the measurement, after waiting for the copy if necessary.

        Called once, when `ready`, by the training thread inside `log` or by the sender thread.
        """
        ...


class Instrument(Protocol):
    """A measuring device attached to a `Run`, for values that are not passed to `log`; `watch` creates one."""

    layout: Layout
    """Layout of the instrument's blocks, whose `id` is assigned by `Run.attach`."""

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer has made a step since the last measured record."""
        ...

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> Pending | None:
        """Start the measurement of ``step``, or return None if there is nothing new.

        ``metrics`` are the user's values, tensors included. Called on the training thread inside `log`. Must not raise,
        block, or synchronise a device.
        """
        ...

    # An instrument that subclasses this protocol inherits the following, which do nothing.

    @property
    def status(self) -> WatchStatus | None:
        """The rhythm of the measuring and what it takes; None if there is nothing to say."""
        return None

    def settle(self) -> None:
        """Complete the measurement of the last record now if it waits for the optimizer's next step.

        Called before the run waits for its records.
        """
        return

    def observe(self, scalars: Mapping[str, float]) -> None:
        """Take in all scalars of a record once they have reached the host. Called from any thread; must be quick."""
        return

    def audit(self, step: int, scalars: Mapping[str, float]) -> Audit | None:
        """Return what the record of ``step`` with these scalars is to say about the audit; None for nothing.

        Called after `observe`, once for each record, from any thread; must be quick and must not raise.
        """
        return None
