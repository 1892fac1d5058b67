"""The weights from before a step, at sampled coordinates.

Three kinds of tensors are compared before and after a step: those whose rule has no formula for Δw, those of low
precision, where rounding may swallow an update, and now and then a few of all others, to check the formula.

Of a large tensor every k-th coordinate is taken, from a start that moves on with every snapshot, so that each
coordinate has its turn and sums over the sample, times k, are those of the tensor on average. k shares no factor with
the shape, as otherwise the same columns of a matrix would be taken from every row. No random numbers are drawn. A
snapshot takes at most `SNAPSHOT_BYTES` whatever the size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from client_sdk.distributed import local
from client_sdk.stats.entry import flat

SNAPSHOT_BYTES: Final = 24 * 2**20
"""Bytes that a snapshot takes at most."""
SAMPLES_PER_TENSOR: Final = 2**18
"""Coordinates of a tensor that are measured at most; the error of a norm is then 0.15 % for Gaussian values."""
CHECKED_TENSORS: Final = 32
"""Tensors of which a check of the formula takes a sample at most, others each time."""
CHECKED_COORDINATES: Final = 1024
"""Coordinates of a tensor that a check of the formula takes at most."""
CHECKS_AT_START: Final = 8
"""Checks whose results must have been read before checks become rarer."""
CHECK_EVERY: Final = 13
"""Measured steps between later checks; prime, so that wrappers that act every 5th or 10th step are met."""
CHECK_EVERY_IF_SUSPECT: Final = 3
"""The same for a subclass with its own `step`."""


class Sample(NamedTuple):
    """Weights of one tensor from before the step."""

    before: Tensor
    """Sampled weights as a vector, in the dtype of the parameter."""
    stride: int
    """Distance of the sampled coordinates."""
    start: int
    """First sampled coordinate."""


def take_snapshot(parameters: Sequence[Tensor], strides: Sequence[int], turn: int) -> list[Sample]:
    """Return copies of every ``strides``-th coordinate of local parameters; ``turn`` counts the snapshots."""
    views: list[Tensor] = []
    starts: list[int] = []
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for at, (parameter, stride) in enumerate(zip(parameters, strides, strict=True)):
        start = turn % stride
        view = flat(parameter)
        views.append(view if stride == 1 else view[start::stride])
        starts.append(start)
        groups.setdefault((view.device, view.dtype), []).append(at)
    copies: dict[int, Tensor] = {}
    for members in groups.values():
        chosen = [views[at] for at in members]
        joined = torch.cat(chosen)  # one copy for all, which is never a view of the parameters
        copies |= zip(members, joined.split([view.numel() for view in chosen]), strict=True)
    return [Sample(copies[at], strides[at], starts[at]) for at in range(len(views))]


def strides_of(parameters: Sequence[Tensor], samples: int = SAMPLES_PER_TENSOR) -> list[int]:
    """Return the stride of each local parameter: at most ``samples`` coordinates each, all within `SNAPSHOT_BYTES`."""
    sizes = [flat(parameter).numel() for parameter in parameters]
    widths = [parameter.real.element_size() for parameter in parameters]
    wanted = sum(min(size, samples) * width for size, width in zip(sizes, widths, strict=True))
    limit = samples if wanted <= SNAPSHOT_BYTES else max(1, int(samples * SNAPSHOT_BYTES / wanted))
    while limit > 1 and sum(min(s, limit) * w for s, w in zip(sizes, widths, strict=True)) > SNAPSHOT_BYTES:
        limit //= 2
    return [
        1 if size <= limit else coprime_stride(math.ceil(size / limit), parameter.shape)
        for size, parameter in zip(sizes, parameters, strict=True)
    ]


def coprime_stride(smallest: int, shape: Sequence[int]) -> int:
    """Return the smallest odd stride from ``smallest`` on that shares no factor with any dimension of ``shape``.

    >>> coprime_stride(4, (9, 35))
    11
    """
    stride = smallest | 1  # odd, as the two halves of a complex number are two coordinates
    while any(math.gcd(stride, size) > 1 for size in shape if size):
        stride += 2
    return stride


class Sampler:
    """Choice of the tensors and coordinates that are compared at each measured step."""

    def __init__(self, *, is_suspect: bool) -> None:
        """Start with a check at each of the first steps; ``is_suspect`` makes later checks more frequent."""
        self._every = CHECK_EVERY_IF_SUSPECT if is_suspect else CHECK_EVERY
        self._turn = 0
        self._checked = 0
        self._strides: dict[tuple[int, ...], list[int]] = {}

    def take(self, measured: Sequence[Tensor], others: Sequence[Tensor], judged: int) -> dict[int, Sample]:
        """Return samples of all of ``measured`` and, if a check is due, of some of ``others``, by id of the parameter.

        Called once before each measured step; ``judged`` is the number of checks whose results have been read.
        """
        chosen = list(measured)
        strides = self._strides_of(chosen)
        if others and (judged < CHECKS_AT_START or self._turn % self._every == 0):
            first = self._checked % len(others)
            checked = [*others[first:], *others[:first]][:CHECKED_TENSORS]
            self._checked += len(checked)
            chosen += checked
            strides += strides_of([local(parameter) for parameter in checked], CHECKED_COORDINATES)
        samples = take_snapshot([local(parameter) for parameter in chosen], strides, self._turn)
        self._turn += 1
        return {id(parameter): sample for parameter, sample in zip(chosen, samples, strict=True)}

    def _strides_of(self, parameters: Sequence[Tensor]) -> list[int]:
        key = tuple(id(parameter) for parameter in parameters)
        if key not in self._strides:
            self._strides = {key: strides_of([local(parameter) for parameter in parameters])}
        return list(self._strides[key])
