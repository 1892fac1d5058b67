"""The largest eigenvalue of a symmetric operator from a few products, without waiting for the device.

Owns the iteration: a Krylov space from a warm start with Rayleigh–Ritz on top, so that the answer is the largest
algebraic eigenvalue and not the largest in magnitude (power iteration alone would find a large negative one).
Pure tensor code; the operator is handed in. Reference: Parlett, The Symmetric Eigenvalue Problem, chapters 11–13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

SQUARINGS: Final = 14  # (1 − gap)^(2^14): Ritz values 0.1 % apart are told apart, closer ones are equally good
NEGLIGIBLE: Final = 1e-3  # a direction of which less than this is new would only bring rounding errors


@dataclass(frozen=True, kw_only=True)
class RitzPair:
    """An approximate eigenpair."""

    value: Tensor
    """0-d float64; never above the true largest eigenvalue."""
    vector: Tensor
    """[N], of length 1."""
    residual: Tensor
    """0-d: ‖Ax − λx‖ / |λ|; some eigenvalue lies within this relative distance."""


def largest_eigenpair(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    products: int,
    known: Sequence[tuple[Tensor, Tensor]] = (),
) -> RitzPair:
    """Of a symmetric A, from ``products`` calls of ``product`` (x [N] → A·x) and the pairs (y, A·y) in ``known``."""
    size = products + len(known)
    basis = start.new_zeros(size, len(start))
    images = torch.zeros_like(basis)
    kept: list[Tensor] = []
    candidate = start
    for at in range(products):
        basis[at], keep = _orthonormal(candidate, basis[:at])
        images[at] = candidate = product(basis[at])
        kept.append(keep)
    for at, (direction, image) in enumerate(known, start=products):
        basis[at], images[at], keep = _add_known(direction, image, basis[:at], images[:at])
        kept.append(keep)
    weights, value = _top_of_small(basis, images, torch.stack(kept))
    weights = weights.to(basis.dtype)
    vector = basis.T @ weights
    error = torch.linalg.vector_norm(images.T @ weights - value.to(basis.dtype) * vector).to(value.dtype)
    return RitzPair(value=value, vector=vector, residual=error / value.abs())


def _orthonormal(candidate: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """``candidate`` without its part in the rows of ``basis``, of length 1, or zeros (and False) where nothing was
    left."""
    vector = candidate
    for _ in range(2):  # once is not enough in float32
        vector = torch.addmv(vector, basis.T, basis @ vector, alpha=-1.0)
    length = torch.linalg.vector_norm(vector)
    keep = length > torch.linalg.vector_norm(candidate) * 1e-6
    return torch.where(keep, vector / length, 0.0), keep


def _add_known(direction: Tensor, image: Tensor, basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    before = torch.linalg.vector_norm(direction)
    direction, image = direction / before, image / before
    for _ in range(2):
        along = basis @ direction
        direction = torch.addmv(direction, basis.T, along, alpha=-1.0)
        image = torch.addmv(image, images.T, along, alpha=-1.0)
    length = torch.linalg.vector_norm(direction)
    keep = length > NEGLIGIBLE
    return torch.where(keep, direction / length, 0.0), torch.where(keep, image / length, 0.0), keep


def _top_of_small(basis: Tensor, images: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [m] and value of the largest eigenpair of the projected matrix, by repeated squaring: `eigh` would wait
    for the device."""
    wide = torch.float32 if basis.device.type == "mps" else torch.float64
    small = (basis @ images.T).to(wide)
    small = (small + small.T) / 2
    identity = torch.eye(len(small), device=small.device, dtype=wide)
    size = torch.linalg.vector_norm(small) + torch.finfo(wide).tiny
    shifted = small + size * torch.where(kept, identity, 0.0)  # ≥ 0; a member that was dropped stays 0 and cannot win
    for _ in range(SQUARINGS):
        shifted = shifted / shifted.diagonal().sum()
        shifted = shifted @ shifted
    best = shifted.diagonal().argmax()
    weights = shifted.index_select(1, best.reshape(1)).squeeze(1)
    weights = weights / torch.linalg.vector_norm(weights)
    return weights, weights @ small @ weights
