"""The preconditioned gradient D^½·g at sampled coordinates, read right after a step of the optimizer.

Owns the choice of the coordinates and the reading. D is that of the optimizer's step: 1/(√v̂+ε) where it keeps a second
moment for each coordinate, with v̂ after the step, and 1 elsewhere; a group whose learning rate is below the largest one
has it multiplied by the ratio of the two. L2 weight decay is left out of g. Of a large tensor every k-th coordinate is
taken, always the same ones, and multiplied by √k, so that sums of squares are those of the tensor on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.distributed import is_divided_alike, local
from client_sdk.layers import size_of
from client_sdk.optimizers import TERM, UpdateRule, first_moment, read_steps, second_moment, term_table
from client_sdk.stats.entry import compute_dtype, flat
from client_sdk.stats.kernel_code import is_dense
from client_sdk.stats.snapshot import coprime_stride

SAMPLES: Final = 2**12
"""Coordinates of all tensors together, if that leaves `LEAST` for each of them."""
LEAST: Final = 16
"""Coordinates of a tensor that are sampled at least, if it has as many."""
TERMS_FOR: Final = 64
"""Share of the steps so far, as a divisor, for which the correction of v for its start is kept."""


class SampledTensor:
    """The sampled coordinates of one parameter."""

    def __init__(self, parameter: Tensor, index: int, group: int, wanted: int) -> None:
        """Take about ``wanted`` coordinates of ``parameter``.

        ``index`` is its position in `Layers.parameters` and ``group`` that of its group in the optimizer.
        """
        held = local(parameter)
        size = size_of(held)
        self.parameter, self.index, self.group = parameter, index, group
        self._held = held
        self._is_divided = held is not parameter
        self._stride = 1 if size <= wanted else coprime_stride(math.ceil(size / wanted), held.shape)
        self._window = slice(0, size, self._stride)
        self.count = -(-size // self._stride)
        """Number of sampled coordinates."""
        self.weight = size / max(1, self.count)
        """Coordinates of the tensor that each sampled one stands for."""
        self._layout = held.stride() if not held.is_complex() and is_dense(held) else None
        self._raw: Tensor | None = None  # the entry of the optimizer's state that the next two belong to
        self._second: Tensor | None = None
        self._second_view: Tensor | None = None

    def gradient(self) -> Tensor | None:
        """Return the local gradient, or None if there is none, or none that can be sampled."""
        grad = self.parameter.grad
        if grad is None or grad.is_sparse:
            return None
        if not self._is_divided:
            return grad
        return local(grad) if is_divided_alike(self.parameter, grad) else None

    def read(self, grad: Tensor) -> Tensor:
        """Return the sampled coordinates of ``grad``, [count]."""
        if grad.stride() == self._layout:
            return torch.as_strided(grad, (self.count,), (self._stride,))
        return flat(grad)[:: self._stride]

    def read_first(self, rule: UpdateRule, state: Mapping[str, Any]) -> Tensor | None:
        """Return the sampled coordinates of m, [count], or None if there is no such tensor."""
        found = first_moment(rule, state, self._held)
        return self.read(found) if isinstance(found, Tensor) else None

    def read_both(self, grad: Tensor, rule: UpdateRule, state: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Return the sampled coordinates of ``grad`` and of v, [count] each; None if there is no v."""
        assert rule.second is not None
        raw = state.get(rule.second)
        if raw is None or raw is not self._raw:
            found = second_moment(rule, state, self._held)
            if found is None:
                return None
            if not isinstance(found, Tensor):
                return flat(grad)[:: self._stride], found.values(self._window)
            self._raw, self._second = raw, found
            is_alike = self._layout is not None and found.stride() == self._layout
            self._second_view = torch.as_strided(found, (self.count,), (self._stride,)) if is_alike else None
        if self._second_view is not None and grad.stride() == self._layout:
            return torch.as_strided(grad, (self.count,), (self._stride,)), self._second_view
        assert self._second is not None
        return flat(grad)[:: self._stride], flat(self._second)[:: self._stride]


class GradientSample:
    """Sampled coordinates of tensors on one device that have the same form of D."""

    def __init__(self, tensors: Sequence[SampledTensor], *, has_second: bool) -> None:
        """Sample ``tensors``. With ``has_second`` the optimizer keeps a second moment of each of their coordinates."""
        held = local(tensors[0].parameter)
        self.device, self.dtype = held.device, compute_dtype(held)
        self.tensors = tensors
        self._has_second = has_second
        counts = torch.tensor([tensor.count for tensor in tensors])
        self.owner = torch.repeat_interleave(torch.arange(len(tensors)), counts).to(self.device)
        """Position in `tensors` of each coordinate, [N]."""
        weights = torch.tensor([tensor.weight for tensor in tensors], dtype=torch.float64)
        self._roots = torch.repeat_interleave(weights.sqrt(), counts).to(self.device, self.dtype)
        self._scale = self._roots
        longest = int(counts.max())
        self._zeros = torch.zeros(longest, device=self.device, dtype=self.dtype)
        self._ones = torch.ones(longest, device=self.device, dtype=self.dtype)
        self._reads = self._terms_until = 0
        self._state: Mapping[str, Any] | None = None  # of the tensor that the next two were computed for
        self._root: Any = None
        self._floor: Any = None

    def set_rates(self, ratios: Sequence[float]) -> None:
        """Take in the learning rate of each group of the optimizer, divided by the largest one."""
        by_tensor = [ratios[tensor.group] for tensor in self.tensors]
        if all(ratio == 1.0 for ratio in by_tensor):
            self._scale = self._roots
        else:
            factors = torch.tensor(by_tensor, dtype=torch.float64).sqrt().to(self.device, self.dtype)
            self._scale = self._roots * factors[self.owner]

    def read(self, optimizer: torch.optim.Optimizer, rules: Sequence[UpdateRule], *, is_folded: bool = False) -> Tensor:
        """Return D^½·g at the sampled coordinates, times √weight, [N]; 0 where a tensor has no gradient.

        ``rules`` are those of the groups of ``optimizer``. With ``is_folded`` the step has added μ·m to the gradients
        of Nesterov's method, which is taken off again. Never synchronises a device.
        """
        if not self._has_second:
            return self._read_first_order(optimizer, rules, is_folded=is_folded).mul_(self._scale)
        pieces, seconds = [], []
        states = optimizer.state
        leading: tuple[UpdateRule, Mapping[str, Any]] | None = None
        for tensor in self.tensors:
            grad = tensor.gradient()
            found = None
            if grad is not None:
                rule, state = rules[tensor.group], states.get(tensor.parameter, {})
                found = tensor.read_both(grad, rule, state)
                leading = leading or (rule, state)
            g, v = found or (self._zeros[: tensor.count], self._ones[: tensor.count])
            pieces.append(g)
            seconds.append(v)
        sampled = torch.cat(pieces).to(self.dtype)
        if leading is None:
            return sampled
        root, floor = self._terms(*leading)
        denominators = torch.cat(seconds).to(self.dtype)
        if leading[0].squared:
            denominators.sqrt_()
        return sampled.mul_(self._scale).div_(denominators.mul_(root).add_(floor).sqrt_())

    def _read_first_order(
        self, optimizer: torch.optim.Optimizer, rules: Sequence[UpdateRule], *, is_folded: bool
    ) -> Tensor:
        """Return g at the sampled coordinates, [N]."""
        pieces = []
        for tensor in self.tensors:
            grad, rule = tensor.gradient(), rules[tensor.group]
            piece = self._zeros[: tensor.count] if grad is None else tensor.read(grad)
            if is_folded and grad is not None and rule.nesterov:
                momentum = tensor.read_first(rule, optimizer.state.get(tensor.parameter, {}))
                piece = piece if momentum is None else piece.to(self.dtype).sub(momentum, alpha=rule.decay)
            pieces.append(piece)
        return torch.cat(pieces).to(self.dtype)

    def _terms(self, rule: UpdateRule, state: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return `root` and `floor` of the denominator root·√v + floor.

        Its correction for the start of v changes ever more slowly, and so is computed ever more rarely. The tensors of
        a rule have made the same number of steps, or almost.
        """
        self._reads += 1
        if state is not self._state or self._reads >= self._terms_until:
            self._state = state
            self._terms_until = self._reads + max(1, min(self._reads // TERMS_FOR, 32))
            (terms,) = term_table(rule, read_steps(rule, [state]), [state])
            root, floor = terms[TERM["root"]], terms[TERM["floor"]]
            is_on_device = isinstance(terms, Tensor)
            self._root = root.to(self.device, self.dtype) if is_on_device else float(root)
            self._floor = floor.to(self.device, self.dtype) if is_on_device else float(floor)
        return self._root, self._floor


def sample(
    tensors: Sequence[tuple[Tensor, int, int]], rules: Sequence[UpdateRule]
) -> tuple[list[GradientSample], dict[int, int]]:
    """Return samples of ``tensors``, one for each device and form of D.

    Each tensor comes with its position in `Layers.parameters` and that of its group, of which ``rules`` are the rules.
    The dictionary has the number of coordinates of each group.
    """
    present = [(parameter, index, group) for parameter, index, group in tensors if size_of(local(parameter))]
    wanted = max(LEAST, SAMPLES // max(1, len(present)))
    banks: dict[tuple[object, ...], list[SampledTensor]] = {}
    sizes: dict[int, int] = {}
    for parameter, index, group in present:
        rule, held = rules[group], local(parameter)
        has_second = rule.second is not None and not rule.is_rotated
        key = (
            has_second, held.device, compute_dtype(held), rule.kind, rule.beta2, rule.eps, rule.is_corrected,
            rule.squared, rule.second,
        )  # fmt: skip
        banks.setdefault(key, []).append(SampledTensor(parameter, index, group, wanted))
        sizes[group] = sizes.get(group, 0) + size_of(held)
    return [GradientSample(members, has_second=bool(key[0])) for key, members in banks.items()], sizes
