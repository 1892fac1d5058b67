"""The largest eigenvalues of a symmetric operator from a few products, without waiting for the device.

Owns the iteration: a Krylov space from a warm start, followed by Rayleigh–Ritz, so that the result is the largest
algebraic eigenvalue and not the largest in magnitude (power iteration alone would find a large negative one).
Pure tensor code; the caller supplies the operator. Reference: Parlett, The Symmetric Eigenvalue Problem, ch. 11–13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

SQUARINGS: Final = 14  # (1 − gap)^(2^14) separates Ritz values 0.1 % apart; closer ones are equally good
NEGLIGIBLE: Final = 1e-3  # new share of a direction below which it would only add rounding errors


@dataclass(frozen=True, kw_only=True)
class RitzPair:
    """An approximate eigenpair."""

    value: Tensor
    """Ritz value λ, 0-d float64 (float32 on MPS); never above the true largest eigenvalue."""
    vector: Tensor
    """Ritz vector x, [N], of length 1."""
    residual: Tensor
    """Relative residual ‖Ax − λx‖ / |λ|, 0-d; some eigenvalue lies within this relative distance of λ."""


def largest_eigenpairs(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    products: int,
    known: Sequence[tuple[Tensor, Tensor]] = (),
    *,
    others: Sequence[Tensor] = (),
    count: int = 1,
) -> list[RitzPair]:
    """Return approximations of the ``count`` largest eigenpairs of a symmetric operator A, the largest first.

    Uses ``products`` calls of ``product`` (x [N] → A·x) for the Krylov space of ``start`` [N], one more for each vector
    of ``others``, and the pairs (y, A·y) in ``known``, which cost nothing. There are fewer pairs if the space has fewer
    dimensions.
    """
    size = products + len(others) + len(known)
    basis = start.new_zeros(size, len(start))
    images = torch.zeros_like(basis)
    kept: list[Tensor] = []
    for at in range(products + len(others)):
        candidate = start if at == 0 else images[at - 1] if at < products else others[at - products]
        basis[at], keep = _orthonormal(candidate, basis[:at])
        images[at] = product(basis[at])
        kept.append(keep)
    for at, (direction, image) in enumerate(known, start=products + len(others)):
        basis[at], images[at], keep = _add_known(direction, image, basis[:at], images[:at])
        kept.append(keep)
    pairs = []
    for exact_weights, value in _top_of_small(basis, images, torch.stack(kept), min(count, size)):
        weights = exact_weights.to(basis.dtype)
        vector = basis.T @ weights
        error = torch.linalg.vector_norm(images.T @ weights - value.to(basis.dtype) * vector).to(value.dtype)
        pairs.append(RitzPair(value=value, vector=vector, residual=error / value.abs()))
    return pairs


def _orthonormal(candidate: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``candidate`` [N] orthonormalised against the rows of ``basis`` [k, N], and whether anything was left.

    If nothing was left, the vector is zero.
    """
    vector = candidate
    for _ in range(2):  # one pass is not enough in float32
        vector = torch.addmv(vector, basis.T, basis @ vector, alpha=-1.0)
    length = torch.linalg.vector_norm(vector)
    keep = length > torch.linalg.vector_norm(candidate) * 1e-6
    return torch.where(keep, vector / length, 0.0), keep


def _add_known(direction: Tensor, image: Tensor, basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a known pair (y, A·y) orthonormalised against ``basis``, both [N], and whether enough of it was new."""
    before = torch.linalg.vector_norm(direction)
    direction, image = direction / before, image / before
    for _ in range(2):
        along = basis @ direction
        direction = torch.addmv(direction, basis.T, along, alpha=-1.0)
        image = torch.addmv(image, images.T, along, alpha=-1.0)
    length = torch.linalg.vector_norm(direction)
    keep = length > NEGLIGIBLE
    return torch.where(keep, direction / length, 0.0), torch.where(keep, image / length, 0.0), keep


def _top_of_small(basis: Tensor, images: Tensor, kept: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the weights [m] and the value of the ``count`` largest eigenpairs of the projected matrix.

    Repeated squaring takes the place of `eigh`, which would wait for the device. A pair that has been found is
    projected out before the next.
    """
    wide = torch.float32 if basis.device.type == "mps" else torch.float64
    small = (basis @ images.T).to(wide)  # [m, m]
    small = (small + small.T) / 2
    identity = torch.eye(len(small), device=small.device, dtype=wide)
    size = torch.linalg.vector_norm(small) + torch.finfo(wide).tiny
    # The shift makes the matrix positive semi-definite. A dropped direction keeps a zero diagonal and cannot win.
    shifted = small + size * torch.where(kept, identity, 0.0)
    pairs = []
    for _ in range(count):
        power = shifted
        for _ in range(SQUARINGS):
            power = power / power.diagonal().sum()
            power = power @ power
        best = power.diagonal().argmax()
        weights = power.index_select(1, best.reshape(1)).squeeze(1)
        weights = weights / torch.linalg.vector_norm(weights)
        pairs.append((weights, weights @ small @ weights))
        rest = identity - torch.outer(weights, weights)
        shifted = rest @ shifted @ rest
    return pairs
