"""The meter of an optimizer that steps flat tensors, perhaps one after the other.

DeepSpeed's ZeRO steps one flat tensor at a time and lets go of its gradient before the next one. Each part is measured
right after it, by a meter of its own, and the measurements are united: amounts of parts of a layer may be added.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client_sdk.distributed import Contribution, Partition
from client_sdk.layers import Layers
from client_sdk.measurement import Measurement
from client_sdk.protocol import Histograms
from client_sdk.stats.layer_statistics import statistics_block, totals
from client_sdk.stats.meter import Meter, StepCopy


class PartedMeter:
    """Measurement of the fragments of one `Partition`. Has the methods of `Meter` that `watch` needs, and two more."""

    has_newcomers = False
    """Whether a parameter is new; fragments are never."""
    has_partial_gradients = False
    """Whether a gradient is still a partial sum; those of flat tensors are not."""

    def __init__(self, partition: Partition, make: Callable[[], Meter]) -> None:
        """Prepare to measure ``partition`` with meters that ``make`` returns, one for each part of the step."""
        self._partition = partition
        self._make = make
        self._first = make()
        self._meters: dict[tuple[int, ...], Meter] = {}
        self._copies: list[StepCopy] = []
        self._trouble: Exception | None = None
        self.is_measuring = False
        """Whether the step under way is being measured, so that its other parts must be too."""
        self.histogram_layers: Container[int] | None = None
        """Not used: a fragment is a part of a layer, which has no histogram."""

    @property
    def layers(self) -> Layers:
        """Layers that are measured."""
        return self._first.layers

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the block's columns."""
        return self._first.statistics

    @property
    def is_refuted(self) -> bool:
        """Whether the weights have moved otherwise than the optimizer's rule says."""
        return any(meter.is_refuted for meter in self._meters.values())

    def before_step(self, optimizer: object, *, has_closure: bool = False) -> None:
        """Take what only exists before the step, of its first part. ``optimizer`` is the partition's."""
        self._copies, self._trouble, self.is_measuring = [], None, True
        self.before_part(has_closure=has_closure)

    def before_part(self, *, has_closure: bool = False) -> None:
        """Take what only exists before a part of the step. With ``has_closure`` the step computes its gradients."""
        self._meter().before_step(self._partition.part(), has_closure=has_closure)

    def measure_part(self) -> None:
        """Measure the part of the step that has just been made, unless it is the last one, which `measure` takes."""
        try:
            meter, part = self._meter(), self._partition.part()
            meter.period_two.follow(part, self._partition.steps)
            copy = meter.measure(part, histograms=False)
            if copy is not None:
                self._copies.append(copy)
        except Exception as error:  # the step as a whole is lost then, which `measure` says
            self._trouble = self._trouble or error
        finally:
            self._partition.release()

    def measure(self, optimizer: object, *, histograms: bool) -> StepCopy | UnitedCopy | None:
        """Return the sums of all parts on their way to the host, or None if none has a gradient.

        Raises what the measurement of any part raised.
        """
        if not self.is_measuring:
            return None
        self.measure_part()
        copies, trouble = self._copies, self._trouble
        self.cancel()
        if trouble is not None:
            raise trouble
        if len(copies) < 2:
            return copies[0] if copies else None
        return UnitedCopy(copies, len(self.layers.names), self.statistics)

    def cancel(self) -> None:
        """Forget the parts of a step that was not completed."""
        self._copies, self._trouble, self.is_measuring = [], None, False
        self._partition.release()

    def _meter(self) -> Meter:
        """Return the meter of the present part, which keeps the plan of its measurement."""
        part = self._partition.stepped
        if part not in self._meters:
            self._meters[part] = self._make() if self._meters else self._first
        return self._meters[part]


class UnitedCopy:
    """Measurements of all parts of one step on their way to the host. Has the methods of `StepCopy`."""

    def __init__(self, parts: Sequence[StepCopy], layer_count: int, statistics: tuple[str, ...]) -> None:
        self._parts = tuple(parts)
        self._layer_count = layer_count
        self._statistics = statistics

    def ready(self) -> bool:
        """Return whether all measurements have reached the host. Never synchronises a device."""
        return all(part.ready() for part in self._parts)

    @cached_property
    def amounts(self) -> NDArray[np.float64]:
        """Amounts of every layer, [layers, len(AMOUNTS)]."""
        amounts: NDArray[np.float64] = np.sum([part.amounts for part in self._parts], axis=0)
        return amounts

    @cached_property
    def totals(self) -> dict[str, float]:
        """Totals over all measured tensors; see `layer_statistics.totals`."""
        return totals(self.amounts)

    def contribution(self, counts: NDArray[np.bool_]) -> Contribution:
        """Return what this rank contributes to a sum over several ranks; see `StepCopy.contribution`."""
        parts = [part.contribution(counts) for part in self._parts]
        squares = np.full(len(counts), np.nan)
        for part in parts:
            squares = np.where(np.isnan(squares), part.squares, squares)  # each tensor is in one part
        return Contribution(amounts=np.sum([part.amounts for part in parts], axis=0), squares=squares)

    def histograms(self) -> tuple[Histograms, ...]:
        """Return no histograms: a layer may be spread over several parts."""
        return ()

    def measurement(self) -> Measurement:
        """Return the block [layers, statistics] and the scalar `grad_norm`."""
        knows_norms = all(part.knows_norms for part in self._parts)
        return Measurement(
            scalars={"grad_norm": self.totals["grad_norm"]} if knows_norms else {},
            block=statistics_block(self.amounts, self._statistics),
        )
