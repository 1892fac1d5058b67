"""The form that the update rules of all optimizers share, and the description of a family of optimizers.

Every family whose update is known exactly is brought into one form, so that statistics and curvature need no special
cases::

    u  = (direct·g + momentum·m) / (root·√v + floor)          the update of each coordinate
    Δw = −lr·u                                                (after −lr·decoupled·w)
    m  = decay·m + intake·g,   v̂ = v / correction

with g the gradient as the optimizer uses it (after `maximize` and coupled weight decay). Families without such a form
say which of the symbols they have; their Δw is measured at the weights themselves (`client_sdk.stats.movement`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal[
    "adam", "nadam", "radam", "adamax", "fused_adam", "bitsandbytes_adam", "rmsprop", "adagrad", "adadelta",
    "adafactor", "transformers_adafactor", "sgd", "lion", "muon", "soap", "schedule_free_adamw", "schedule_free_radam",
    "schedule_free_sgd", "prodigy", "other",
]  # fmt: skip
"""Name of a family of optimizers with one update rule."""
Numbers = TypeVar("Numbers", NDArray[np.float64], Tensor)

TERMS: Final = (
    "direct", "momentum", "root", "floor", "threshold", "lr", "coupled",
    "correction", "decoupled", "gain", "first_step",
)  # fmt: skip
"""Columns of `term_table`.

√v below `threshold` means √v̂ < ε. `gain` is the `oscillation_gain`. `first_step` is 1 if this was the tensor's first
step, so that there is no earlier momentum. The other columns are the symbols of the formulas above.
"""
TERM: Final = {name: position for position, name in enumerate(TERMS)}
"""Position of each column of `term_table`."""
ELEMENTWISE_TERMS: Final = TERMS[:7]
"""Leading columns of `term_table`, which the formulas over coordinates need."""
SMALLEST_EPS: Final = 1e-35
"""Number that replaces ε = 0, so that a coordinate without any gradient gives 0 instead of 0/0."""


@dataclass(frozen=True, kw_only=True)
class UpdateRule:
    """Update rule of one parameter group at this step, as host numbers except for a learning rate kept on a device."""

    kind: Kind
    """Kind of the optimizer."""
    lr: float | Tensor
    """Learning rate η of the group; NaN if the optimizer has none, such as Adafactor with relative steps."""
    is_exact: bool = True
    """Whether u follows the formula of this module. Otherwise Δw is measured at the weights."""
    is_scaled_by_rate: bool = True
    """Whether Δw = −lr·u (after decoupled weight decay) defines u where `is_exact` is False."""
    is_rotated: bool = False
    """Whether v is kept in another basis than the gradient, so that only their sums can be compared."""
    sign: int = 1
    """Sign of the gradient, −1 for `maximize`."""
    decay: float = 0.0
    """Decay of the first moment: β1, or the momentum of SGD and RMSprop."""
    intake: float = 1.0
    """Share of a new gradient in m: 1 − β1, or 1 − dampening."""
    beta2: float = 0.0
    """Decay of the second moment."""
    eps: float = 0.0
    """Constant ε in the denominator of the update."""
    coupled: float = 0.0
    """L2 weight decay, which is added to the gradient."""
    decoupled: float = 0.0
    """Decoupled weight decay, as in AdamW."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    momentum_decay: float = 0.0
    """Momentum decay of NAdam."""
    rate_factor: float = 1.0
    """Factor between the group's learning rate and the one in effect: warm-up of schedule-free, d of Prodigy."""
    averaging: float = 0.0
    """Share c of the newest iterate in the average of schedule-free."""
    is_corrected: bool = True
    """Whether the moments are corrected for their start at zero."""
    steps: float | Tensor | None = None
    """Step counter t if the group keeps it, and None if the state of each tensor does."""
    first: str | None = None
    """Key of m in the optimizer's state."""
    second: str | None = None
    """Key of v in the optimizer's state."""
    squared: bool = True
    """Whether v is a mean of squares; False for Adamax, whose v is a maximum of |g|."""
    divided: bool = False
    """Whether m already holds preconditioned gradients, as in RMSprop with momentum, so that u = m."""

    @property
    def uses_gradient(self) -> bool:
        """Whether u has a part of the gradient itself in addition to momentum."""
        return self.kind == "nadam" or self.nesterov or self.first is None

    @property
    def is_idle(self) -> bool:
        """Whether this step moves no weights, as the first ones of schedule-free RAdam and of SOAP."""
        return self.rate_factor == 0 or (self.kind == "soap" and isinstance(self.steps, int) and self.steps < 1)


Columns = dict[str, Any]
"""Some of the `TERMS` by name, [P] each."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of optimizers with one update rule."""

    kind: Kind
    """Name of the family."""
    classes: frozenset[tuple[str, str]]
    """Top-level package and class name of each optimizer; a package "" stands for any."""
    wire: Literal["adam", "sgd", "rmsprop", "other"]
    """Name of the family for the server."""
    read: Callable[[torch.optim.Optimizer, Mapping[str, Any]], UpdateRule]
    """Function from an optimizer and one of its groups to the group's current rule."""
    terms: Callable[[UpdateRule, Any, Any], Columns]
    """Function from a rule, the steps t [P] and NAdam's product of momenta [P] to those `TERMS` that are not trivial.

    Its arithmetic uses operators that NumPy and torch share.
    """
    has_limit: bool = True
    """Whether the stability limit is known; see `oscillation_gain`."""
    diagonal: Callable[[UpdateRule, Mapping[str, Any], Mapping[str, Any], Tensor], Tensor | None] | None = None
    """Function from a rule, its group, the state and the values of a parameter to the diagonal of D, [n].

    It leaves out the gain, returns None where D is 1/(root·√v + floor), and never synchronises a device.
    """


def of(package: str, *names: str) -> frozenset[tuple[str, str]]:
    """Return the entries of `Family.classes` for some classes of one package."""
    return frozenset((package, name) for name in names)


def no_terms(rule: UpdateRule, t: Any, mu_product: Any) -> Columns:
    """Return no columns; a `Family.terms` for optimizers of which only m, or nothing, is known."""
    return {}


def rate_of(group: Mapping[str, Any]) -> float | Tensor:
    """Return the learning rate of a group: a tensor if it is kept on a device, and NaN if there is none."""
    lr = group.get("lr")
    if lr is None:
        return float("nan")
    return lr if is_on_device(lr) else float(lr)


def is_on_device(value: object) -> bool:
    """Return whether ``value`` is a tensor that cannot be read without waiting for a device."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def is_decoupled(group: Mapping[str, Any]) -> bool:
    """Return whether the weight decay of a group is applied to the weights instead of being added to the gradient.

    The keys are those of torch, of pytorch_optimizer and of Prodigy.
    """
    return bool(group.get("decoupled_weight_decay") or group.get("weight_decouple") or group.get("decouple"))
