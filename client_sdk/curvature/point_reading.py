"""The leading eigenpairs of a symmetric operator at one point, from products that are judged one by one on the host.

For models so small that the arithmetic of a `SearchSpace`, which follows an operator that drifts and never waits for a
device, takes longer than the products themselves. Pure NumPy. References: Parlett, The Symmetric Eigenvalue Problem,
ch. 10–13 (Rayleigh–Ritz, the bound of Kato and Temple).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[Any]
"""One vector or several, in float32 or float64."""

NEW: Final = 1e-3  # length of what is new of a vector of length 1, below which it is left out
CAUTION: Final = 2.0  # factor on the bound, as the second eigenvalue is known from below only
AGED: Final = 0.5  # part of the gap that a remembered second eigenvalue may have closed
MIN_SIZE: Final = 4  # vectors below which the space says nothing about the second eigenvalue


@dataclass(frozen=True, kw_only=True, eq=False)
class PointReading:
    """Approximate eigenpairs, the largest eigenvalue first."""

    values: NDArray[np.float64]
    """Ritz values, [m]."""
    vectors: Vectors
    """Ritz vectors of length 1, [m, N]."""
    images: Vectors
    """Images of the vectors, [m, N]."""
    error: float
    """Relative error of the largest value: by how much it may be below the eigenvalue."""


def read_at_point(
    product: Callable[[Vectors], Vectors],
    known: Sequence[tuple[Vectors, Vectors]],
    starts: Sequence[Vectors],
    *,
    good: float,
    most: int,
    second_share: float | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> PointReading | None:
    """Return the leading pairs of the operator ``product``, x [N] → A·x [N], from at most ``most`` products.

    ``known`` are vectors with their images, which cost no product, and ``starts`` vectors to begin with, all of any
    length. After these, residuals extend the space until the error is at most ``good``. ``second_share`` is what the
    second eigenvalue was last in shares of the first, if that is known. ``may_go_on`` is asked before each product but
    the first, and ends the reading with the error that it has. Returns None if everything is zero, or if an image is
    not finite.
    """
    basis: list[Vectors] = []
    images: list[Vectors] = []
    for vector, image in known:
        length = float(np.linalg.norm(vector))
        rest, along = _rest(vector / length, basis) if length > 0 else (vector, ())
        new = float(np.linalg.norm(rest))
        if new > NEW:
            rest_image = image / length
            for coefficient, other in zip(along, images, strict=True):
                rest_image = rest_image - coefficient * other
            basis.append(rest / new)
            images.append(rest_image / new)
    count = 0
    waiting = list(starts)
    reading: PointReading | None = None
    while count < most and (count == 0 or may_go_on()):
        is_start = bool(waiting)
        if is_start:
            candidate = waiting.pop(0)
        elif reading is not None:
            candidate = reading.images[0] - reading.values[0].astype(reading.images.dtype) * reading.vectors[0]
        else:
            break
        length = float(np.linalg.norm(candidate))
        if not length > 0:
            if is_start:
                continue
            break
        rest, _ = _rest(candidate / length, basis)
        new = float(np.linalg.norm(rest))
        if new > NEW:
            rest = _rest(rest / new, basis)[0]  # one pass is not enough in float32
            vector = rest / np.linalg.norm(rest)
            basis.append(vector)
            images.append(product(vector))
            count += 1
        elif not is_start:
            break
        if waiting or not basis:
            continue
        reading = _rotate(np.stack(basis), np.stack(images), second_share)
        if reading is None or reading.error <= good:
            break
        basis, images = list(reading.vectors), list(reading.images)
    return reading


def _rest(vector: Vectors, basis: Sequence[Vectors]) -> tuple[Vectors, list[Any]]:
    along = [other @ vector for other in basis]
    for coefficient, other in zip(along, basis, strict=True):
        vector = vector - coefficient * other
    return vector, along


def _rotate(basis: Vectors, images: Vectors, second_share: float | None) -> PointReading | None:
    """Return the Ritz pairs of the space of the orthonormal rows of ``basis`` [m, N]."""
    small = (basis @ images.T).astype(np.float64)
    if not np.isfinite(small).all():
        return None
    values, turn = np.linalg.eigh((small + small.T) / 2)
    values, turn = values[::-1], np.ascontiguousarray(turn[:, ::-1].T).astype(basis.dtype)
    vectors, images = turn @ basis, turn @ images
    residuals = [
        float(np.linalg.norm(images[at] - values[at].astype(images.dtype) * vectors[at]))
        for at in range(min(2, len(values)))
    ]
    bound = residuals[0]
    second = np.inf
    if second_share is not None:
        second = max([(second_share + AGED * (1.0 - second_share)) * values[0], *values[1:2]])
    elif len(values) >= MIN_SIZE:
        second = values[1] + residuals[1]
    if values[0] - second > bound:
        bound = min(bound, CAUTION * bound**2 / (values[0] - second))
    error = bound / abs(values[0]) if values[0] else np.inf
    return PointReading(values=values, vectors=vectors, images=images, error=float(error))
