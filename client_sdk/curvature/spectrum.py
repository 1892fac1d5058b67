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
    basis: list[Tensor] = []
    images: list[Tensor] = []
    kept: list[Tensor] = []
    candidate = start
    for _ in range(products):
        direction, keep = _orthonormal(candidate, basis)
        image = product(direction)
        basis.append(direction)
        images.append(image)
        kept.append(keep)
        candidate = image
    for direction, image in known:
        new_direction, new_image, keep = _add_known(direction, image, basis, images)
        basis.append(new_direction)
        images.append(new_image)
        kept.append(keep)
    weights, value = _top_of_small(basis, images, torch.stack(kept))
    vector = _combine(weights, basis)
    image = _combine(weights, images)
    wide = value.dtype
    error = torch.linalg.vector_norm(image - value.to(image.dtype) * vector).to(wide)
    return RitzPair(value=value, vector=vector, residual=error / value.abs())


def _orthonormal(candidate: Tensor, basis: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``candidate`` without its part in ``basis``, of length 1, or zeros (and False) where nothing was left."""
    vector = candidate
    for _ in range(2):  # once is not enough in float32
        for member in basis:
            vector = vector - torch.dot(member, vector) * member
    length = torch.linalg.vector_norm(vector)
    keep = length > torch.linalg.vector_norm(candidate) * 1e-6
    return torch.where(keep, vector / length, 0.0), keep


def _add_known(
    direction: Tensor, image: Tensor, basis: Sequence[Tensor], images: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    before = torch.linalg.vector_norm(direction)
    direction, image = direction / before, image / before
    for _ in range(2):
        for member, member_image in zip(basis, images, strict=True):
            along = torch.dot(member, direction)
            direction = direction - along * member
            image = image - along * member_image
    length = torch.linalg.vector_norm(direction)
    keep = length > NEGLIGIBLE
    return torch.where(keep, direction / length, 0.0), torch.where(keep, image / length, 0.0), keep


def _top_of_small(basis: Sequence[Tensor], images: Sequence[Tensor], kept: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [m] and value of the largest eigenpair of the projected matrix, by repeated squaring: `eigh` would wait
    for the device."""
    wide = torch.float32 if basis[0].device.type == "mps" else torch.float64
    rows = [torch.stack([torch.dot(member, image) for image in images]) for member in basis]
    small = torch.stack(rows).to(wide)
    small = (small + small.T) / 2
    identity = torch.eye(len(basis), device=small.device, dtype=wide)
    size = torch.linalg.vector_norm(small) + torch.finfo(wide).tiny
    shifted = small + size * torch.where(kept, identity, 0.0)  # ≥ 0; a member that was dropped stays 0 and cannot win
    for _ in range(SQUARINGS):
        shifted = shifted / shifted.diagonal().sum()
        shifted = shifted @ shifted
    best = shifted.diagonal().argmax()
    weights = shifted.index_select(1, best.reshape(1)).squeeze(1)
    weights = weights / torch.linalg.vector_norm(weights)
    return weights, weights @ small @ weights


def _combine(weights: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    total = weights[0].to(vectors[0].dtype) * vectors[0]
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        total = total + weight.to(vector.dtype) * vector
    return total
