"""The directions of largest curvature, followed through the gradient of every step between two probes.

Owns the directions and their amplitudes on the device. `mode_reading` derives the values that are reported. In the
coordinates y = D^(-1/2)·θ of the optimizer's norm, a direction q of the operator D^½·H·D^½ with eigenvalue λ and the
amplitude c = ⟨q, D^½·g⟩ of the gradient along it holds c²/(2λ) of the loss. D is that of the last probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from client_sdk.curvature.inner_product import WHOLE, InnerProduct
from client_sdk.curvature.mode_reading import WINDOW, Motion, mode_scalars
from client_sdk.curvature.preconditioner import same_tensors
from client_sdk.curvature.spectrum import RitzPair
from client_sdk.distributed import is_divided_alike, local
from client_sdk.host import TensorCopy
from client_sdk.optimizers import GradientResponse

AT_ONCE: Final = 2**20  # coordinates that are concatenated at a time, which bounds the extra memory to a few MiB


class ModeCopy:
    """Amplitudes of the last steps on their way to the host."""

    def __init__(self, rows: Sequence[Tensor], motion: Motion | None = None) -> None:
        """Start copying ``rows`` of `UnstableDirections`, the oldest first; ``motion`` is that of the last step."""
        self._copy = TensorCopy(torch.stack(list(rows)))
        self._motion = motion

    def ready(self) -> bool:
        """Return whether all values have reached the host. Never synchronises a device."""
        return self._copy.ready()

    def scalars(self) -> dict[str, float]:
        """Return the scalars of the last step (see `mode_reading.mode_scalars`)."""
        return mode_scalars(self._copy.array(), self._motion)


class UnstableDirections:
    """Directions of one model and optimizer. Used on the training thread; never synchronises a device."""

    def __init__(self) -> None:
        self._parameters: tuple[Tensor, ...] = ()
        self._root: Tensor | None = None
        self._vectors: Tensor | None = None
        self._values: Tensor | None = None
        self._batches: list[tuple[slice, tuple[Tensor, ...]]] = []
        self._rows: deque[Tensor] = deque(maxlen=WINDOW)
        self._latest: Tensor | None = None
        self.number = 0
        """Number of the directions that are followed, which the caller gives them; 0 for none."""
        self.response: GradientResponse | None = None
        """Response of the optimizer's updates to the gradients; None if it is not the same for all parameters."""
        self.lr: float | None = None
        """Learning rate of the step under way; None if it is not known on the host."""

    @property
    def is_known(self) -> bool:
        """Whether a probe has found directions that can be followed."""
        return self._vectors is not None

    def replace(
        self,
        pairs: Sequence[RitzPair],
        root: Tensor,
        parameters: tuple[Tensor, ...],
        *,
        inner: InnerProduct = WHOLE,
    ) -> None:
        """Follow the vectors of ``pairs``, the largest eigenvalue first, from now on.

        ``root`` is D^½, shape (N,), in the order of ``parameters``. The sign of each vector is chosen so that it
        continues the vector that it takes the place of. Where ``inner`` is that of several ranks, the amplitudes are
        those of this rank's part, and those of all ranks have to be added.
        """
        vectors = torch.stack([pair.vector for pair in pairs])  # [k, N]
        same = same_tensors(parameters, self._parameters)
        if self._vectors is not None and same and self._vectors.shape == vectors.shape:
            along = torch.stack(inner.dots(*zip(self._vectors, vectors, strict=True)))[:, None]
            vectors = torch.where(along < 0, -vectors, vectors)
        else:
            self._rows.clear()
            self._batches = _batches(parameters)
        self._vectors, self._root, self._parameters = inner.counted(vectors), inner.counted(root), parameters
        self._values = torch.stack([pair.value for pair in pairs]).to(vectors.dtype)

    def forget(self) -> None:
        """Stop following, after a probe that found nothing usable."""
        self._vectors = self._values = self._root = None
        self._parameters = ()
        self._rows.clear()
        self._latest = None
        self.number = 0

    def pause(self) -> None:
        """Leave out a step: growth and alternation are measured over consecutive steps only."""
        self._rows.clear()
        self._latest = None

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the gradients of the step that is under way, which must not have been overwritten yet."""
        if self._vectors is None or self._root is None or self._values is None:
            return
        amplitudes = torch.zeros(len(self._vectors), device=self._root.device, dtype=self._root.dtype)
        square = torch.zeros((), device=self._root.device, dtype=self._root.dtype)
        for part, members in self._batches:
            pieces = [_own_gradient(parameter).to(self._root) for parameter in members]
            preconditioned = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)) * self._root[part]
            amplitudes += self._vectors[:, part] @ preconditioned
            square += preconditioned @ preconditioned
        self._latest = torch.cat([square.reshape(1), amplitudes, self._values])
        self._rows.append(self._latest)

    def take_latest(self) -> Tensor | None:
        """Return the row of the last step that was followed, once: ‖D^½·g‖², the amplitudes and the eigenvalues."""
        latest, self._latest = self._latest, None
        return latest

    def copy(self) -> ModeCopy | None:
        """Return the amplitudes of the last steps on their way to the host, or None if nothing was followed."""
        if not self._rows:
            return None
        motion = None
        if self.response is not None and self.lr is not None:
            motion = Motion(lr=self.lr, response=self.response)
        return ModeCopy(self._rows, motion)


def _own_gradient(parameter: Tensor) -> Tensor:
    """Return the gradient of the part of ``parameter`` that this rank holds, as a vector; NaN if it is not known."""
    if parameter.grad is None:
        return torch.zeros_like(local(parameter.detach())).reshape(-1)
    grad = local(parameter.grad).reshape(-1)
    # A partial sum of tensor parallelism says nothing by itself.
    return grad if is_divided_alike(parameter, parameter.grad) else torch.full_like(grad, torch.nan)


def _batches(parameters: Sequence[Tensor]) -> list[tuple[slice, tuple[Tensor, ...]]]:
    """Return consecutive parameters in batches of at most `AT_ONCE` coordinates, each with its part of a vector [N]."""
    batches: list[tuple[slice, tuple[Tensor, ...]]] = []
    members: list[Tensor] = []
    start = size = 0
    for parameter in parameters:
        count = local(parameter.detach()).numel()
        if members and size + count > AT_ONCE:
            batches.append((slice(start, start + size), tuple(members)))
            start, size, members = start + size, 0, []
        members.append(parameter)
        size += count
    if members:
        batches.append((slice(start, start + size), tuple(members)))
    return batches
