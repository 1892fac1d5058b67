"""λ_max from one Hessian-vector product at a time: what each product is spent on, and when a reading is good enough.

Owns the decisions on the host about the `SearchSpace` of the device. A *round* is the series of products after which
λ_max has been read: vectors that extend the space until the expected error is small, and a fresh product with the
leading vector. A round that begins with a good vector needs that last product alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Literal

import torch
from torch import Tensor

from client_sdk.curvature.inner_product import InnerProduct
from client_sdk.curvature.point_reading import MIN_SIZE, PointReading, read_at_point
from client_sdk.curvature.spectrum import RitzPair, SearchSpace

Aim = Literal["begin", "extend", "read", "second"]
"""Purpose of a product: a first vector, a further one, a reading of λ_max, or a fresh image of the second vector."""

GOOD_ERROR: Final = 0.01  # relative error of λ_max with which a round ends
FINE_ERROR: Final = 1e-4  # the same with which a round begins by reading, as its direction is good already
MAX_EXTENSIONS: Final = 4  # products that extend the space in the first round; later ones have one at most
FEW_PRODUCTS: Final = 2  # products that extend the space in a reading at once, while the last error was good
MANY_PRODUCTS: Final = 3  # the same while it was not, and in addition to MAX_EXTENSIONS in an empty space
MOST_AT_POINT: Final = 4  # products of a reading at one point, besides that of the gradient
FEW_AT_POINT: Final = 3  # the same where readings are scarce
FIRST_AT_POINT: Final = 2  # the same for the first reading, whose preparation takes longest
RARE_ERROR: Final = 0.03  # relative error of λ_max with which such a reading ends, as the next one is worth more
SECOND_EVERY: Final = 3  # rounds of which one also refreshes the second direction
WORST_ERROR: Final = 0.5  # relative error above which λ_max is not reported, but its vector is kept and refined
DIRECTIONS: Final = 2  # eigenvectors that are followed between products


class Tracking:
    """The leading eigenvectors of one model in the norm of its optimizer. Used on the training thread."""

    def __init__(self) -> None:
        self._space = SearchSpace()
        self._error = math.inf  # the last relative error that has reached the host
        self._extensions = 0  # in this round
        self._max_extensions = MAX_EXTENSIONS
        self._is_scarce = False
        self._rounds = 0
        self._second_share: float | None = None  # the second eigenvalue in shares of the first, at the last reading
        self._has_read = False  # in this round, so that only the second direction is left
        self._is_known = False  # whether the last reading was good enough to follow the directions

    def measure_in(self, inner: InnerProduct) -> None:
        """Take all inner products of the next measurement by ``inner``."""
        self._space.inner = inner

    @property
    def has_vector(self) -> bool:
        """Whether there is a vector to go on from."""
        return self._space.size > 0

    @property
    def products_at_once(self) -> int:
        """Number of products that `read_at_once` would make now."""
        return max(1, min(self._space.size, DIRECTIONS)) + self._extensions_at_once

    @property
    def _extensions_at_once(self) -> int:
        if not self.has_vector:
            return MAX_EXTENSIONS + MANY_PRODUCTS
        return FEW_PRODUCTS if self._error <= GOOD_ERROR else MANY_PRODUCTS

    def plan(self, *, is_scarce: bool = False) -> Aim:
        """Return what the next product is for.

        With ``is_scarce``, products are so far apart that an early reading with a larger error is worth more than a
        late one with a small error.
        """
        self._is_scarce = is_scarce
        if not self.has_vector:
            return "begin"
        if self._has_read:
            return "second"
        is_good = self._error <= (GOOD_ERROR if self._extensions else FINE_ERROR)
        return "read" if is_good or self._extensions >= self._most_extensions else "extend"

    @property
    def _most_extensions(self) -> int:
        return 1 if self._is_scarce else self._max_extensions

    def vector(self, aim: Aim, root: Tensor, gradient: Tensor | None) -> Tensor:
        """Return the vector [N] whose image is wanted, in the coordinates of ``root`` = D^½ [N].

        ``gradient`` is D^½·g [N], which only the first vector needs.
        """
        self._space.move(root)
        if aim == "begin":
            assert gradient is not None
            return self._space.beginning(gradient) * (root > 0)
        if aim == "extend":
            return self._space.residual()
        return self._space.improved(1 if aim == "second" else 0)

    def take(self, aim: Aim, vector: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Take in the ``image`` [N] of ``vector``, and return 0-d tensors for `observe`.

        They are the relative error that is expected now, `expected_error`, and after a reading `lambda_max` and
        `lambda_max_error`.
        """
        if aim in ("begin", "extend"):
            return {"expected_error": self._space.extend(vector, image).error}
        estimate = self._space.renew(1 if aim == "second" else 0, vector, image)
        if aim == "second":
            return {"expected_error": estimate.error}
        return {"lambda_max": estimate.value, "lambda_max_error": estimate.error}

    def take_known(self, direction: Tensor, image: Tensor, root: Tensor) -> None:
        """Take in a ``direction`` [N] of any length whose ``image`` [N] was computed for another purpose."""
        if self.has_vector:
            self._space.move(root)
            self._space.extend_by_known(direction, image)

    def read_at_point(
        self,
        product: Callable[[Tensor], Tensor],
        root: Tensor,
        gradient: Tensor,
        known: tuple[Tensor, Tensor] | None,
        *,
        is_scarce: bool = False,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> dict[str, Tensor]:
        """Read λ_max with as many products as that takes, each judged before the next, and return 0-d tensors.

        The arguments are those of `read_at_once`; ``known`` may be missing. With ``is_scarce``, readings are so far
        apart that an earlier one is worth more than a small error. ``may_go_on`` is asked before each product but the
        first. The vectors must be on the CPU. Nothing is left for `observe`.
        """
        space = self._space
        second: float | None = None
        most = MOST_AT_POINT
        if is_scarce:
            most = FEW_AT_POINT if self.has_vector else FIRST_AT_POINT
        if self.has_vector:
            space.move(root)
            starts = [space.improved()]
            if self._rounds % SECOND_EVERY:
                second = self._second_share
        else:
            starts = [space.beginning(gradient) * (root > 0)]
        reading = read_at_point(
            lambda vector: product(torch.from_numpy(vector)).numpy(),
            [] if known is None else [(known[0].numpy(), known[1].numpy())],
            [start.numpy() for start in starts],
            good=RARE_ERROR if is_scarce else GOOD_ERROR,
            most=most,
            second_share=second,
            may_go_on=may_go_on,
        )
        if reading is None:
            self.forget()
            return {}
        space.replace(reading, root)
        self._remember_second(reading)
        self._error, self._is_known = reading.error, reading.error <= WORST_ERROR
        self._end_round()
        value = torch.tensor(float(reading.values[0]), dtype=torch.float64)
        return {"lambda_max": value, "lambda_max_error": torch.tensor(reading.error, dtype=torch.float64)}

    def _remember_second(self, reading: PointReading) -> None:
        """Keep the second eigenvalue in shares of the first; a small space knows it from below only."""
        if len(reading.values) < 2:
            return
        share = max(0.0, float(reading.values[1] / reading.values[0]))
        is_known = len(reading.values) >= MIN_SIZE or self._second_share is None
        self._second_share = share if is_known else max(share, self._second_share or 0.0)

    def read_at_once(
        self, product: Callable[[Tensor], Tensor], root: Tensor, gradient: Tensor, known: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Read λ_max with as many products as that takes at one point, and return 0-d tensors for `observe`.

        ``product`` is x [N] → A·x, ``gradient`` is D^½·g [N], and ``known`` a direction with its image. All images are
        of the same point, so that the reading is as exact as if nothing drifted.
        """
        space, extensions = self._space, self._extensions_at_once
        space.move(root)
        if self.has_vector:
            seconds = space.pairs(DIRECTIONS)[1:]
            vector = space.improved()
            space.restart(vector, product(vector))
            for pair in seconds:
                vector = space.rest(pair.vector)
                space.extend(vector, product(vector))
        else:
            vector = space.beginning(gradient) * (root > 0)
            space.extend(vector, product(vector))
        for _ in range(extensions):
            vector = space.residual()
            estimate = space.extend(vector, product(vector))
        estimate = space.extend_by_known(*known) or estimate
        return {"lambda_max": estimate.value, "lambda_max_error": estimate.error}

    def observe(self, aim: Aim | None, values: Mapping[str, float]) -> bool:
        """Take in values that have reached the host, and return whether the round has ended.

        They are those of `take`, or with ``aim`` None those of `read_at_once`.
        """
        error = values.get("lambda_max_error", values.get("expected_error", math.nan))
        if math.isnan(error) or not math.isfinite(values.get("lambda_max", 0.0)):
            self.forget()
            return True
        if aim == "second":
            self._end_round()
            return True
        self._error = error
        if aim in ("begin", "extend"):
            self._extensions += aim == "extend"
            return False
        self._is_known = error <= WORST_ERROR
        if aim is None:
            self._end_round()
            return True
        if error > GOOD_ERROR and self._extensions < self._most_extensions:
            return False
        turn = SECOND_EVERY - 1 if self._is_scarce else 0  # scarce products go to the leading direction first
        if self._rounds % SECOND_EVERY == turn and self._space.size > 1:
            self._has_read = True
            return False
        self._end_round()
        return True

    def pairs(self) -> list[RitzPair]:
        """Return the leading pairs, the largest eigenvalue first; none if the last reading was too uncertain."""
        return self._space.pairs(DIRECTIONS) if self._is_known else []

    def forget(self) -> None:
        """Begin from nothing with the next product."""
        self._space.forget()
        self._error, self._second_share = math.inf, None
        self._extensions, self._has_read, self._is_known = 0, False, False
        self._max_extensions = MAX_EXTENSIONS

    def _end_round(self) -> None:
        self._rounds += 1
        self._extensions, self._has_read = 0, False
        self._max_extensions = 1
