"""The Hessian-vector products of one measurement, in the norm of the optimizer, and what follows from them."""

from __future__ import annotations

import torch
from torch import Tensor

from client_sdk.curvature.hessian import Hessian
from client_sdk.curvature.inner_product import InnerProduct
from client_sdk.curvature.preconditioner import Preconditioner, to_vector
from client_sdk.curvature.sandbox import held
from client_sdk.curvature.schedule import Choice
from client_sdk.curvature.timer import Allowance
from client_sdk.curvature.tracking import Aim, Tracking


@torch.no_grad()
def evaluate_products(
    choice: Choice,
    aim: Aim | None,
    hessian: Hessian,
    preconditioner: Preconditioner,
    *,
    tracking: Tracking,
    inner: InnerProduct,
    at_point: Allowance | None,
    is_rare: bool,
) -> dict[str, Tensor]:
    """Compute the products of ``choice`` for ``tracking``, and return 0-d tensors.

    ``aim`` says what the product of "track" is for. With ``at_point``, λ_max is read by several products within that
    allowance, each judged before the next; ``is_rare`` tells that such readings are far apart. The values are `loss`,
    `lr`, `gradient_square`, `product_error`, and those of `Tracking` or `lambda_grad`.
    """
    diagonal, penalty = preconditioner.diagonal, preconditioner.penalty
    root = diagonal.sqrt()
    is_moving = root > 0  # False for coordinates whose learning rate is zero, which are fixed

    def curved(vector: Tensor) -> Tensor:
        product = hessian.product(vector)
        return product if penalty is None else product + penalty * vector

    tracked: tuple[Tensor, Tensor] | None = None
    if aim is not None and aim != "begin":  # first, so that ranks average the product together with the gradient
        vector = tracking.vector(aim, root, None)
        tracked = vector, root * curved(root * vector)
    gradient = torch.where(is_moving, hessian.gradient, 0.0)  # [N]
    if penalty is not None:
        weights = to_vector([held(parameter) for parameter in preconditioner.parameters], preconditioner)
        gradient = gradient + torch.where(is_moving, penalty * weights, 0.0)
    (square,) = inner.dots((gradient, gradient))
    values = {"loss": hessian.loss, "lr": preconditioner.lr, "gradient_square": square}
    values["product_error"] = torch.tensor(hessian.error, dtype=torch.float64)
    along = torch.where(is_moving, gradient / root, 0.0)  # the gradient in the coordinates of D^½·H·D^½
    known: tuple[Tensor, Tensor] | None = None
    if choice in ("gradient", "both"):
        image = curved(gradient)
        (bent,) = inner.dots((gradient, diagonal * image))
        values["lambda_grad"] = bent / square
        known = along, root * image
    if at_point is not None:
        at_point.start()
        values |= tracking.read_at_point(
            lambda x: root * curved(root * x),
            root,
            root * gradient,
            known,
            is_scarce=is_rare,
            may_go_on=at_point.may_go_on,
        )
    elif choice == "gradient" and known is not None:
        tracking.take_known(*known, root)
    elif choice == "both" and known is not None:
        values |= tracking.read_at_once(lambda x: root * curved(root * x), root, root * gradient, known)
    elif aim is not None:
        if tracked is None:
            vector = tracking.vector(aim, root, root * gradient)
            tracked = vector, root * curved(root * vector)
        values |= tracking.take(aim, *tracked)
    return values
