"""Means of what several ranks, each of which holds a copy of all parameters, measure by themselves.

A rank whose closure fails after the vote contributes NaN to the means that the others wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from client_sdk.curvature.hessian import Hessian
from client_sdk.curvature.ranks import Ranks

Value = TypeVar("Value")


class MeanHessian:
    """Hessian of the mean of the losses of all ranks; implements `Hessian`.

    All ranks must ask for the same products in the same order. An error of this rank is kept in ``failure``, and NaN
    takes the place of its part, so that everything is NaN on all ranks.
    """

    def __init__(self, ranks: Ranks, make: Callable[[], Hessian], like: Tensor, *, products: int) -> None:
        """Average what the Hessian that ``make`` returns gives on each rank.

        ``like`` has the shape (N,) and the type of the vectors; ``products`` is the number of products to come.
        Allocates the memory of all means, so that nothing is missing later.
        """
        self._ranks = ranks
        self._make = make
        self._packed = like.new_empty(2 * len(like) + 3)
        self._first = self._packed[: len(like) + 2]  # loss, 1 for a failure, gradient
        self._second = self._packed[len(like) + 2 :]  # 1 for a failure, product
        self._own: Hessian | None = None
        self._is_averaged = False  # the first part
        self._products = products
        self._failures = like.new_zeros(())
        self.failure: Exception | None = None
        """The first error of this rank."""

    @property
    def loss(self) -> Tensor:
        """Mean loss, 0-d."""
        return self._averaged()[0]

    @property
    def gradient(self) -> Tensor:
        """Mean gradient, [N]."""
        return self._averaged()[2:]

    @property
    def failures(self) -> Tensor:
        """A number above 0 if any rank has failed so far, 0-d."""
        return self._failures

    @property
    def own_loss(self) -> Tensor | None:
        """Loss of this rank, 0-d; None if it failed."""
        return None if self._own is None or self.failure is not None else self._own.loss

    @property
    def error(self) -> float:
        """Relative error of the products of this rank; those of the others are made in the same way."""
        return 0.0 if self._own is None else self._own.error

    def product(self, vector: Tensor) -> Tensor:
        """Return the mean of H·vector, [N]. The first product takes loss and gradient with it if they are not known."""
        self._products -= 1
        own = self._attempt(lambda: self._local().product(vector))
        if not self._is_averaged:
            self._fill_first()
        if own is None or self.failure is not None:
            self._second.fill_(torch.nan)[0] = 1.0
        else:
            self._second[0] = 0.0
            self._second[1:] = own
        self._ranks.average(self._second if self._is_averaged else self._packed)
        if not self._is_averaged:
            self._is_averaged = True
            self._failures = self._failures + self._first[1]
        self._failures = self._failures + self._second[0]
        return self._second[1:].clone()

    def finish(self) -> None:
        """Contribute to the products that the other ranks still expect, after an error between two of them."""
        if self._products > 0 and self.failure is None:
            self.failure = RuntimeError("the measurement ended early")
        while self._products > 0:
            self.product(self._second[1:])

    def fail(self, error: Exception) -> None:
        """Keep an error of this rank."""
        self.failure = self.failure or error

    def _local(self) -> Hessian:
        if self._own is None:
            self._own = self._make()
        return self._own

    def _averaged(self) -> Tensor:
        if not self._is_averaged:
            self._fill_first()
            self._ranks.average(self._first)
            self._is_averaged = True
            self._failures = self._failures + self._first[1]
        return self._first

    def _fill_first(self) -> None:
        own = self._attempt(lambda: (self._local().loss, self._local().gradient))
        if own is None or self.failure is not None:
            self._first.fill_(torch.nan)[1] = 1.0
            return
        self._first[0], self._first[1] = own[0], 0.0
        self._first[2:] = own[1]

    def _attempt(self, work: Callable[[], Value]) -> Value | None:
        if self.failure is not None:
            return None
        try:
            return work()
        except Exception as error:
            self.failure = error
            return None


def mean_step(
    ranks: Ranks, loss: Tensor | None, measure: Callable[[], dict[str, Tensor]], device: torch.device
) -> tuple[dict[str, Tensor], Exception | None]:
    """Return the means of ``loss``, and of `loss_before` and `slope` as ``measure`` returns them on each rank.

    A rank without ``loss``, or whose ``measure`` raises, makes them NaN and `failures` above 0; its error is returned.
    """
    failure: Exception | None = None
    values: dict[str, Tensor] = {}
    wide = torch.float32 if device.type == "mps" else torch.float64
    means = torch.full((4,), torch.nan, device=device, dtype=wide)
    means[3] = 1.0
    kind = torch.float32
    if loss is not None:
        try:
            values = measure()
            means[:3] = torch.stack([each.to(wide) for each in (loss, values["loss_before"], values["slope"])])
            means[3], kind = 0.0, loss.dtype
        except Exception as error:
            failure = error
    ranks.average(means)
    names = ("loss", "loss_before", "slope", "failures")
    found = {name: value.to(kind if name == "loss" else wide) for name, value in zip(names, means, strict=True)}
    return found | {name: value for name, value in values.items() if name not in names}, failure
