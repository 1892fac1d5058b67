"""The largest eigenpairs of a symmetric operator that drifts, from one product at a time, without waiting for a device.

Owns the search space and the choice of the next vector. The operator is A = D^½·H·D^½; both H and D change between two
products, because the training goes on. Vectors are therefore kept in the coordinates of one D and moved to those of the
next. An image A·x follows such a change of D exactly and is only as old as its H, so that a reading is taken from a
fresh product with the leading vector and the rest of the space serves to find that vector.

Pure tensor code; the caller supplies the products. References: Parlett, The Symmetric Eigenvalue Problem, ch. 10–13
(Rayleigh–Ritz, the bound of Kato and Temple); Wu and Simon 2000 (restart with the leading Ritz vectors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from client_sdk.curvature.inner_product import WHOLE, InnerProduct
from client_sdk.curvature.point_reading import PointReading

ROOM: Final = 6  # vectors of the search space
SMALL_ROOM: Final = 4  # the same for a model of more than LARGE parameters, whose vectors take much memory
LARGE: Final = 50_000_000
MIN_SIZE: Final = 4  # vectors below which the space says nothing about the second eigenvalue
CAUTION: Final = 2.0  # factor on the bound, as the second eigenvalue is known from below only
SHIFT: Final = 0.3  # of the eigenvalue, in a step of the power method, which keeps down negative eigenvalues
TINY: Final = 1e-12  # squared length below which a vector that had length 1 is a row of zeros
SQUARINGS: Final = 14  # (1 − gap)^(2^14) separates Ritz values 0.1 % apart; closer ones are equally good
NEW_SHARE: Final = 0.1  # new share of a known direction below which it would mostly add the age of other images
RANDOM_SHARE: Final = 0.1  # length of the random part of the first vector, which keeps any direction from being missed


@dataclass(frozen=True, kw_only=True)
class RitzPair:
    """An approximate eigenpair."""

    value: Tensor
    """Ritz value λ, 0-d float64 (float32 on MPS)."""
    vector: Tensor
    """Ritz vector x, [N], of length 1."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The largest eigenvalue as far as it is known."""

    value: Tensor
    """λ, 0-d float64 (float32 on MPS). After a product with the leading vector it is never above the true value."""
    error: Tensor
    """Relative error, 0-d: by how much λ may be below the true value, if no direction was missed altogether."""


class SearchSpace:
    """Ritz vectors of an operator that drifts, with their images.

    Each turn of the caller is: `move` to the present D, ask for a vector (`improved`, `residual` or `beginning`),
    compute its image, and give it back (`renew`, `extend`).
    """

    def __init__(self) -> None:
        self.inner: InnerProduct = WHOLE
        """Inner product of the vectors, of which several ranks may hold a part each. All of them take equal turns."""
        self._basis: Tensor | None = None  # [m, N], the largest Ritz value first; orthonormal before the next move
        self._images: Tensor | None = None  # [m, N]
        self._values: Tensor | None = None  # [m], Ritz values
        self._root: Tensor | None = None  # [N], D^½ of the present coordinates

    @property
    def size(self) -> int:
        """Number of vectors in the space."""
        return 0 if self._basis is None else len(self._basis)

    def forget(self) -> None:
        """Empty the space."""
        self._basis = self._images = self._values = self._root = None

    def pairs(self, count: int) -> list[RitzPair]:
        """Return the ``count`` leading pairs, or fewer if the space is smaller."""
        if self._basis is None or self._values is None:
            return []
        return [RitzPair(value=v, vector=x) for v, x in zip(self._values[:count], self._basis[:count], strict=True)]

    # -- the turn of the caller --

    def move(self, root: Tensor) -> None:
        """Move to the coordinates of the present D, whose square root is ``root`` [N]."""
        if root is self._root:
            return
        if self._basis is not None and self._images is not None and self._root is not None:
            ahead = torch.where(self._root > 0, root / self._root, 0.0)  # of images; vectors move by its inverse
            self._images.mul_(ahead)
            self._basis.mul_(torch.where(ahead > 0, 1.0 / ahead, 0.0))
        self._root = root

    def beginning(self, gradient: Tensor) -> Tensor:
        """Return a first vector: D^½·g of the ``gradient`` g [N] with a random part."""
        noise = self.inner.noise(gradient)
        length, noise_length = self.inner.lengths(gradient, noise)
        start = torch.where(length > 0, gradient / length, 0.0)
        return self._normalised(start + RANDOM_SHARE * noise / noise_length)

    def improved(self, at: int = 0) -> Tensor:
        """Return Ritz vector number ``at``, 0 being the leading one, after one step of the power method.

        The step costs nothing, as the image is known. It follows an operator that drifts better than the vector itself.
        """
        assert self._basis is not None
        assert self._images is not None
        at = min(at, len(self._basis) - 1)
        vector, image = self._basis[at], self._images[at]
        along, square = self.inner.dots((vector, image), (vector, vector))
        value = along / square.clamp_min(TINY)
        moved = image + SHIFT * value.abs() * vector
        return self._normalised(moved) if at == 0 else self._rest(moved, self._basis[:at])

    def residual(self, at: int = 0) -> Tensor:
        """Return the direction in which the space lacks the image of a Ritz vector; zero if it lacks nothing."""
        assert self._basis is not None
        assert self._images is not None
        return self._rest(self._images[min(at, len(self._basis) - 1)], self._basis)

    def extend(self, vector: Tensor, image: Tensor) -> Estimate:
        """Add a ``vector`` [N] that is orthogonal to the space, with its ``image`` [N]."""
        if self._basis is None or self._images is None:
            self._set(vector[None], image[None])
            return self._rotate(fresh=0)
        room = ROOM if len(vector) <= LARGE else SMALL_ROOM
        kept = min(len(self._basis), room - 1)
        self._set(torch.cat([self._basis[:kept], vector[None]]), torch.cat([self._images[:kept], image[None]]))
        return self._rotate(fresh=kept)

    def restart(self, vector: Tensor, image: Tensor) -> None:
        """Keep nothing but ``vector`` [N], which came from `improved`, with its fresh ``image`` [N]."""
        self._set(vector[None], image[None])
        self._rotate(fresh=0)

    def replace(self, reading: PointReading, root: Tensor) -> None:
        """Keep the leading pairs of ``reading``, which was made in the coordinates of ``root`` = D^½ [N]."""
        self._root = root
        self._set(torch.from_numpy(reading.vectors[:ROOM]), torch.from_numpy(reading.images[:ROOM]))
        self._values = torch.from_numpy(reading.values[:ROOM].copy())

    def rest(self, vector: Tensor) -> Tensor:
        """Return ``vector`` [N] orthonormalised against the space; zero if nothing of it is new."""
        return vector if self._basis is None else self._rest(vector, self._basis)

    def extend_by_known(self, direction: Tensor, image: Tensor) -> Estimate | None:
        """Add a ``direction`` [N] of any length whose ``image`` [N] is known anyway, if enough of it is new.

        Returns None if the space is empty.
        """
        if self._basis is None or self._images is None:
            return None
        (length,) = self.inner.lengths(direction)
        direction, image = direction / length, image / length
        along = self._coefficients(self._basis, direction)
        rest = torch.addmv(direction, self._basis.T, along, alpha=-1.0)
        image = torch.addmv(image, self._images.T, along, alpha=-1.0)
        (new,) = self.inner.lengths(rest)
        keep = new > NEW_SHARE
        return self.extend(torch.where(keep, rest / new, 0.0), torch.where(keep, image / new, 0.0))

    def renew(self, at: int, vector: Tensor, image: Tensor) -> Estimate:
        """Replace Ritz vector ``at`` by ``vector`` [N], which came from `improved`, with its fresh ``image`` [N].

        For the leading vector the value of the estimate is its Rayleigh quotient, and the error is bounded by the
        residual: some eigenvalue lies within the residual, and by Kato and Temple within its square over the gap to the
        second eigenvalue.
        """
        assert self._basis is not None
        assert self._images is not None
        at = min(at, len(self._basis) - 1)
        value = self.inner.matrix(vector[None], image[None])[0, 0]
        estimate = self._estimate(value, vector, image)
        before = [row for row in range(len(self._basis)) if row < at]
        after = [row for row in range(len(self._basis)) if row > at]
        basis = torch.cat([self._basis[before], vector[None], self._basis[after]])
        images = torch.cat([self._images[before], image[None], self._images[after]])
        self._set(basis, images)
        rotated = self._rotate(fresh=at)
        return estimate if at == 0 else rotated

    # -- inside --

    def _estimate(self, value: Tensor, vector: Tensor, image: Tensor) -> Estimate:
        """Return what is known of an eigenvalue near ``value``, from the residual of its vector and the second value.

        The second eigenvalue is taken to be the second Ritz value and its residual, and infinite while the space is too
        small to show it.
        """
        assert self._basis is not None
        assert self._images is not None
        assert self._values is not None
        residuals = [image - value.to(vector.dtype) * vector]
        if len(self._basis) >= MIN_SIZE:
            residuals.append(self._images[1] - self._values[1].to(self._basis.dtype) * self._basis[1])
        lengths = [length.to(value.dtype) for length in self.inner.lengths(*residuals)]
        rest = lengths[0]
        gap = value - (self._values[1] + lengths[1]) if len(lengths) > 1 else torch.full_like(value, -torch.inf)
        bound = torch.where(gap > rest, torch.minimum(CAUTION * rest * rest / gap, rest), rest)
        return Estimate(value=value, error=bound / value.abs())

    def _set(self, basis: Tensor, images: Tensor) -> None:
        self._basis, self._images = basis, images

    def _rotate(self, *, fresh: int) -> Estimate:
        """Rotate the space to its Ritz vectors; row ``fresh`` has an image that is newer than those of the others."""
        assert self._basis is not None
        assert self._images is not None
        products = self.inner.matrix(self._basis, self._basis, self._images)
        (gram, filled), small = _filled(products[:, : len(self._basis)]), products[:, len(self._basis) :]
        newest = small[:, fresh].clone()  # ⟨x_j, A·x_fresh⟩
        small = (small + small.T) / 2
        small[:, fresh] = small[fresh, :] = newest
        factor, _ = torch.linalg.cholesky_ex(gram)
        identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        values, weights = _eigen(inverse @ small @ inverse.T, filled)
        turn = (weights.T @ inverse).to(self._basis.dtype)  # to orthonormal Ritz vectors
        self._values = values
        self._set(turn @ self._basis, turn @ self._images)
        return self._estimate(values[0], self._basis[0], self._images[0])

    def _normalised(self, vector: Tensor) -> Tensor:
        (length,) = self.inner.lengths(vector)
        return torch.where(length > 0, vector / length, 0.0)

    def _rest(self, candidate: Tensor, basis: Tensor) -> Tensor:
        """Return ``candidate`` [N] orthonormalised against the rows of ``basis`` [m, N]; zero if nothing is left."""
        vector = candidate
        for _ in range(2):  # one pass is not enough in float32
            vector = torch.addmv(vector, basis.T, self._coefficients(basis, vector), alpha=-1.0)
        length, whole = self.inner.lengths(vector, candidate)
        keep = length > whole * 1e-6
        return torch.where(keep, vector / length, 0.0)

    def _coefficients(self, basis: Tensor, vector: Tensor) -> Tensor:
        """Return the coefficients [m] of the part of ``vector`` [N] that lies in the span of the rows of ``basis``."""
        products = self.inner.matrix(basis, basis, vector[None])
        gram, _ = _filled(products[:, :-1])
        factor, _ = torch.linalg.cholesky_ex(gram)
        return torch.cholesky_solve(products[:, -1:], factor).squeeze(1).to(vector.dtype)


def _filled(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inner products [m, m] of some vectors, and which of these are not zero [m].

    The diagonal of a vector of zeros becomes 1, so that the matrix can be factorised.
    """
    filled = gram.diagonal() > TINY
    both = filled[:, None] & filled[None, :]
    return torch.where(both, gram, 0.0) + torch.diag((~filled).to(gram.dtype)), filled


def _eigen(small: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues [m] and eigenvectors [m, m] in columns of ``small``, the largest first.

    Rows that are not ``filled`` come last. `eigh` waits for the device, so that repeated squaring takes its place on
    any device but the CPU.
    """
    size = torch.linalg.vector_norm(small) + torch.finfo(small.dtype).tiny
    lowered = small - torch.diag(torch.where(filled, 0.0, 4.0 * size))
    if small.device.type == "cpu":
        if not bool(lowered.isfinite().all()):
            return torch.full_like(small[0], torch.nan), torch.full_like(small, torch.nan)
        values, vectors = torch.linalg.eigh(lowered)
        return values.flip(0), vectors.flip(1)
    return by_squaring(lowered, size)


def by_squaring(small: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `torch.linalg.eigh` does, the largest first, without waiting for the device.

    ``small`` is symmetric, shape (m, m), and no eigenvalue of it is below −5·``size``. A pair that has been found is
    projected out before the next.
    """
    identity = torch.eye(len(small), device=small.device, dtype=small.dtype)
    shifted = small + 5.0 * size * identity
    values: list[Tensor] = []
    columns: list[Tensor] = []
    for _ in range(len(small)):
        power = shifted
        for _ in range(SQUARINGS):
            power = power / power.diagonal().sum()
            power = power @ power
        best = power.diagonal().argmax()
        weights = power.index_select(1, best.reshape(1)).squeeze(1)
        weights = weights / torch.linalg.vector_norm(weights)
        for found in columns:
            weights = weights - (found @ weights) * found
        weights = weights / torch.linalg.vector_norm(weights)
        columns.append(weights)
        values.append(weights @ small @ weights)
        rest = identity - torch.outer(weights, weights)
        shifted = rest @ shifted @ rest
    return torch.stack(values), torch.stack(columns, 1)
