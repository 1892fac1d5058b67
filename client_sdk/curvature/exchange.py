"""Small sums over the ranks in the course of one measurement, in which a rank that fails tells the others.

Ranks of a sharded model depend on each other in every forward and backward pass. Each point at which one of them may
leave the common way is therefore followed by an exchange: a sum of some numbers on the host, through the process group
of the layer statistics, that also says whether all ranks are well and at the same point. A rank that fails makes one
last exchange, at which all others abandon the measurement.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.curvature.sandbox import ClosureError
from client_sdk.distributed import Reduction

Point = Literal["forward", "loss", "gradient", "inner product", "inner products", "mean", "end"]
"""Place in a measurement: before a forward pass, after the closure, after a backward pass, or the sum that is made."""

Array = NDArray[np.float64]
POINTS: Final[tuple[Point, ...]] = get_args(Point)
WIDTH: Final = 256  # numbers of one exchange; every exchange has this size, so that no rank can be out of step
POLL: Final = 60.0  # seconds between looks at a sum whose own limit is shorter


class AbandonedError(ClosureError):
    """The measurement was given up because another rank has failed."""


class Exchange:
    """Sums of one measurement. Used on the training thread, which waits for each of them."""

    def __init__(self, reduction: Reduction, size: int) -> None:
        """Exchange with the other ranks of ``reduction``, ``size`` in all."""
        self._reduction = reduction
        self._size = size
        self._is_open = False

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._size

    def begin(self) -> None:
        """Begin, once all ranks have agreed to measure. Nothing is exchanged before."""
        self._is_open = True

    def add(self, point: Point, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over all ranks, in their shape and on their device, in float64 if it has that.

        All ranks must come to the same ``point``. Raises `AbandonedError` if one of them does not, or has failed.
        """
        count = values.numel()
        own = values.detach().reshape(-1).to("cpu", torch.float64).numpy()
        found = self._exchange(float(1 + POINTS.index(point) + len(POINTS) * count), own)
        wide = torch.float32 if values.device.type == "mps" else torch.float64
        return torch.from_numpy(found[:count].copy()).reshape(values.shape).to(values.device, wide)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of ``values`` over all ranks, as `add` does their sum."""
        return self.add("mean", values) / self._size

    def meet(self, point: Point) -> None:
        """Wait until all ranks have come to ``point``. Raises `AbandonedError` as `add` does."""
        self.add(point, torch.zeros(0))

    def end(self) -> None:
        """Make the last exchange of a measurement that went well. Raises `AbandonedError` as `add` does."""
        self.meet("end")
        self._is_open = False

    def fail(self) -> None:
        """Let the other ranks abandon the measurement, unless it is over. Returns at once."""
        if self._is_open:
            self._is_open = False
            message = np.concatenate([[1.0], np.zeros(2 + WIDTH)])
            self._reduction.submit(lambda: message)

    def _exchange(self, code: float, values: Array) -> Array:
        if not self._is_open:
            raise AbandonedError("the measurement is over")
        message = np.zeros(3 + WIDTH)
        message[1:3] = code, code * code
        message[3 : 3 + len(values)] = values
        sums = self._send(message)
        # The codes of all ranks are equal exactly if n·Σ code² = (Σ code)².
        if sums is None or sums[0] > 0 or self._size * sums[2] != sums[1] * sums[1]:
            self._is_open = False
            raise AbandonedError("another rank has failed")
        return sums[3:]

    def _send(self, message: Array) -> Array | None:
        reduced = self._reduction.submit(lambda: message)
        while not reduced.wait(POLL):  # the reduction has a time limit of its own
            pass
        return reduced.values
