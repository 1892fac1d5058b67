"""The method by which the curvature of a model is measured, and the one that takes over when it fails.

Exact products come first, then products by finite differences, then losses alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from client_sdk.curvature.preconditioner import UnsupportedError
from client_sdk.warner import Warner

Method = Literal["auto", "exact", "finite-difference", "forward", "off"]
"""The way in which curvature is measured: by Hessian-vector products, or by losses alone (`ForwardProbe`)."""

METHODS: Final[tuple[Method, ...]] = get_args(Method)
SHORT_FLOATS: Final = (torch.bfloat16, torch.float16)  # weights that differences of gradients cannot resolve
INSTEAD: Final = "Critical sharpness and λ_step, which need no Hessian-vector product, are measured instead"


class MethodChoice:
    """The method of one probe. Used on the training thread."""

    def __init__(self, method: Method, warner: Warner) -> None:
        """Begin with ``method``; "auto" begins with exact products."""
        self.method = method
        """The method that was asked for."""
        self.uses_differences = method == "finite-difference"
        """Whether products are differences of two gradients."""
        self.has_products = method != "forward"
        """Whether there are Hessian-vector products, so that λ_grad and λ_max can be measured."""
        self._warner = warner

    def take_over(self, reason: str, parameters: Sequence[Tensor]) -> None:
        """Go on with the next method after the present one has failed for ``reason``.

        ``parameters`` are those that are measured. Raises `UnsupportedError` if there is no other method.
        """
        if self.method != "auto":
            raise UnsupportedError(
                f"{reason}, so that curvature is not measured by {self.method!r}; "
                'watch(…, curvature="auto") goes on with another method'
            )
        if self.uses_differences or any(parameter.dtype in SHORT_FLOATS for parameter in parameters):
            self.has_products = False
            self._warner.warn("curvature_forward", f"{reason}. {INSTEAD}")
            return
        self.uses_differences = True
        self._warner.warn(
            "finite_differences",
            f"{reason}. Hessian-vector products are differences of two gradients from now on, with an error of up to "
            "1 %",
        )
